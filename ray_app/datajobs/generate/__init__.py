"""Generate or inpaint labelled images from prompts, with pipelines of diffusers.

The entry point is `ray_app.datajobs.generate.run.generate_images`.
"""

from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard, load_pipeline_card

__all__ = ["GenerateConfig", "PipelineCard", "load_pipeline_card"]
