"""YAML files → frozen pydantic models. Knows files, keys and defaults; knows nothing of images or Ray."""

from ray_app.config.loading import Frozen, config_root, find_config, load_yaml, named_configs

__all__ = ["Frozen", "config_root", "find_config", "load_yaml", "named_configs"]
