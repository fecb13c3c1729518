"""Prompts → generated or locally edited images with their facts, on Ray. Knows diffusers' pipelines; knows no detector.

Importing it is cheap: what makes images is in `ray_app.generation.run`.
"""

from ray_app.generation.cards import PipelineCard, load_pipeline_card
from ray_app.generation.config import GenerateConfig

__all__ = ["GenerateConfig", "PipelineCard", "load_pipeline_card"]
