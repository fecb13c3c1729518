"""Prompts → generated or locally edited images with their facts, by pipelines of diffusers on Ray:
`ray_app.datajobs.generate.run`.
"""

from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard, load_pipeline_card

__all__ = ["GenerateConfig", "PipelineCard", "load_pipeline_card"]
