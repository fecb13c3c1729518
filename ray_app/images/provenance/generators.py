"""Which generator wrote parameters into a file, by their structure, and what they say. Knows texts; knows no container."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ray_app.images.provenance import graphs, webui
from ray_app.images.provenance.statements import Generator

Texts = Mapping[str, str]

# What programs that make pictures call themselves, at the start of EXIF's Software, PNG's or XMP's CreatorTool.
_NAMES = ("NovelAI", "InvokeAI", "Midjourney", "DALL·E", "DALL-E", "Adobe Firefly", "ComfyUI", "Fooocus", "SwarmUI", "Draw Things",
          "Stable Diffusion", "AUTOMATIC1111")  # fmt: skip
_MIDJOURNEY = re.compile(r"Job ID: [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*\Z")


def read_generator(texts: Texts, software: str) -> Generator | None:
    """The generator that the texts or the software's name speak of; None where they speak of none."""
    for read in (_invokeai, _json_parameters, _comfyui, _webui, _novelai, _midjourney):
        if fields := read(texts, software):
            return Generator(**fields)
    named = next((name for name in _NAMES if software.casefold().startswith(name.casefold())), None)
    return Generator(tool=named) if named else None


def _webui(texts: Texts, software: str) -> dict[str, Any]:
    """Stable Diffusion web UI and its kin."""
    del software
    for keyword in ("parameters", "comment"):
        if fields := webui.read_parameters(texts.get(keyword, "")):
            return {"tool": "Stable Diffusion web UI", **fields}
    return {}


def _comfyui(texts: Texts, software: str) -> dict[str, Any]:
    """ComfyUI's graph as it ran (`prompt`) or as it was drawn (`workflow`), and the line that some of its nodes write besides."""
    graph = graphs.read_prompt(_mapping(texts.get("prompt", ""))) or graphs.read_workflow(_mapping(texts.get("workflow", "")))
    line = _webui(texts, software)
    return {**graph, **line, "tool": "ComfyUI"} if graph else {}


def _novelai(texts: Texts, software: str) -> dict[str, Any]:
    comment = _mapping(texts.get("Comment", ""))
    if software.strip() != "NovelAI" or not {"steps", "sampler"} <= comment.keys():
        return {}
    return {
        "tool": "NovelAI",
        "prompt": texts.get("Description") or comment.get("prompt"),
        "negative_prompt": comment.get("uc"),
        "model": texts.get("Source"),
        **_taken(comment, ("steps", "sampler", "seed")),
    }


def _invokeai(texts: Texts, software: str) -> dict[str, Any]:
    del software
    said = _mapping(texts.get("invokeai_metadata", ""))
    if "positive_prompt" in said:
        model = said.get("model")
        model = model if isinstance(model, dict) else {}
        return {"tool": "InvokeAI", "version": said.get("app_version"), "prompt": said["positive_prompt"], "sampler": said.get("scheduler"),
                "model": model.get("name") or model.get("model_name"), "model_hash": model.get("hash"),
                **_taken(said, ("negative_prompt", "steps", "seed"))}  # fmt: skip
    said = _mapping(texts.get("sd-metadata", ""))
    image = said.get("image")
    if isinstance(image, dict):
        prompt = image.get("prompt")
        prompt = prompt[0].get("prompt") if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict) else prompt
        return {"tool": "InvokeAI", "version": said.get("app_version"), "prompt": prompt, "model": said.get("model_weights"),
                "model_hash": said.get("model_hash"), **_taken(image, ("steps", "sampler", "seed"))}  # fmt: skip
    return {}


def _json_parameters(texts: Texts, software: str) -> dict[str, Any]:
    """Fooocus and SwarmUI write the web UI's text as JSON."""
    del software
    said = _mapping(texts.get("parameters", ""))
    swarm = said.get("sui_image_params")
    if isinstance(swarm, dict):
        return {"tool": "SwarmUI", "version": swarm.get("swarm_version"), "negative_prompt": swarm.get("negativeprompt"),
                **_taken(swarm, ("prompt", "model", "steps", "sampler", "seed"))}  # fmt: skip
    if "base_model" in said:
        return {"tool": "Fooocus", "model": said["base_model"], "model_hash": said.get("base_model_hash"),
                **_taken(said, ("version", "prompt", "negative_prompt", "steps", "sampler", "seed"))}  # fmt: skip
    return {}


def _midjourney(texts: Texts, software: str) -> dict[str, Any]:
    del software
    described = texts.get("Description", "")
    found = _MIDJOURNEY.search(described, max(0, len(described) - 100))
    return {"tool": "Midjourney", "prompt": described[: found.start()]} if found else {}


def _taken(said: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: said.get(name) for name in names}


def _mapping(text: str) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    if text.lstrip()[:1] != "{":
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # nested deeper than the interpreter's stack
        return {}
    return value if isinstance(value, dict) else {}
