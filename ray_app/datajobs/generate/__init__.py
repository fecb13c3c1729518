"""Generate labelled images from prompts, or alter real images, with pipelines of diffusers.

The entry point is `ray_app.datajobs.generate.run.generate_images`.
"""

from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard, load_pipeline_card

__all__ = ["GenerateConfig", "PipelineCard", "load_pipeline_card"]
