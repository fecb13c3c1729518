"""Generation parameters in metadata texts → `Generator` (`read_generator`): Stable Diffusion web UI, ComfyUI, NovelAI, InvokeAI, Fooocus,
Midjourney …
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.images.provenance.statement import Generator

MOST_NODES = 500
_MODELS = ("ckpt_name", "unet_name")

MOST_SETTINGS = 4000  # characters of the last line: a long one lists the hashes of many networks
_STEPS = re.compile(r"^Steps: \d+, [A-Z]", re.MULTILINE)
_SETTING = re.compile(r'(\w[\w /-]{0,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|\Z)')
_NEGATIVE = "Negative prompt:"
_FIELDS = {"Sampler": "sampler", "Model": "model", "Model hash": "model_hash", "Version": "version"}

Texts = Mapping[str, str]

# What programs that make pictures call themselves, at the start of EXIF's Software, PNG's or XMP's CreatorTool.
_NAMES = ("NovelAI", "InvokeAI", "Midjourney", "DALL·E", "DALL-E", "Adobe Firefly", "ComfyUI", "Fooocus", "SwarmUI", "Draw Things",
          "Stable Diffusion", "AUTOMATIC1111")  # fmt: skip
_MIDJOURNEY = re.compile(r"Job ID: [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*\Z")


def read_generator(texts: Texts, software: str) -> Generator | None:
    """The generator that the texts or the software's name state; None where they state none."""
    for keywords, read in _READERS:
        if not texts.keys().isdisjoint(keywords) and (fields := read({**texts, "Software": software})):
            return Generator(**fields)
    for name in _NAMES if software else ():
        if software.casefold().startswith(name.casefold()):
            return Generator(tool=name)
    return None


def _webui(texts: Texts) -> dict[str, Any]:
    """Stable Diffusion web UI and its kin."""
    for keyword in ("parameters", "comment"):
        if fields := read_parameters(texts.get(keyword, "")):
            return {"tool": "Stable Diffusion web UI", **fields}
    return {}


def _comfyui(texts: Texts) -> dict[str, Any]:
    """ComfyUI's graph as it ran (`prompt`) or as it was drawn (`workflow`), and the line that some of its nodes write besides."""
    graph = read_prompt(_mapping(texts.get("prompt", ""))) or read_workflow(_mapping(texts.get("workflow", "")))
    line = _webui(texts)
    return {**graph, **line, "tool": "ComfyUI"} if graph else {}


def _novelai(texts: Texts) -> dict[str, Any]:
    comment = _mapping(texts.get("Comment", ""))
    if texts["Software"].strip() != "NovelAI" or not {"steps", "sampler"} <= comment.keys():
        return {}
    return {
        "tool": "NovelAI",
        "prompt": texts.get("Description") or comment.get("prompt"),
        "negative_prompt": comment.get("uc"),
        "model": texts.get("Source"),
        **_taken(comment, ("steps", "sampler", "seed")),
    }


def _invokeai(texts: Texts) -> dict[str, Any]:
    given = _mapping(texts.get("invokeai_metadata", ""))
    if "positive_prompt" in given:
        model = given.get("model")
        model = model if isinstance(model, dict) else {}
        return {"tool": "InvokeAI", "version": given.get("app_version"), "prompt": given["positive_prompt"],
                "sampler": given.get("scheduler"),
                "model": model.get("name") or model.get("model_name"), "model_hash": model.get("hash"),
                **_taken(given, ("negative_prompt", "steps", "seed"))}  # fmt: skip
    given = _mapping(texts.get("sd-metadata", ""))
    image = given.get("image")
    if isinstance(image, dict):
        prompt = image.get("prompt")
        prompt = prompt[0].get("prompt") if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict) else prompt
        return {"tool": "InvokeAI", "version": given.get("app_version"), "prompt": prompt, "model": given.get("model_weights"),
                "model_hash": given.get("model_hash"), **_taken(image, ("steps", "sampler", "seed"))}  # fmt: skip
    return {}


def _json_parameters(texts: Texts) -> dict[str, Any]:
    """Fooocus and SwarmUI write the web UI's text as JSON."""
    record = _mapping(texts.get("parameters", ""))
    swarm = record.get("sui_image_params")
    if isinstance(swarm, dict):
        return {"tool": "SwarmUI", "version": swarm.get("swarm_version"), "negative_prompt": swarm.get("negativeprompt"),
                **_taken(swarm, ("prompt", "model", "steps", "sampler", "seed"))}  # fmt: skip
    if "base_model" in record:
        return {"tool": "Fooocus", "model": record["base_model"], "model_hash": record.get("base_model_hash"),
                **_taken(record, ("version", "prompt", "negative_prompt", "steps", "sampler", "seed"))}  # fmt: skip
    return {}


def _midjourney(texts: Texts) -> dict[str, Any]:
    described = texts.get("Description", "")
    found = _MIDJOURNEY.search(described, max(0, len(described) - 100))
    return {"tool": "Midjourney", "prompt": described[: found.start()]} if found else {}


def _taken(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


def _mapping(text: str) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    if text.lstrip()[:1] != "{":
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # nested deeper than the interpreter's stack
        return {}
    return value if isinstance(value, dict) else {}


# By the keywords without which each finds nothing, in the order in which they are tried.
_READERS = (
    (("invokeai_metadata", "sd-metadata"), _invokeai),
    (("parameters",), _json_parameters),
    (("prompt", "workflow"), _comfyui),
    (("parameters", "comment"), _webui),
    (("Comment",), _novelai),
    (("Description",), _midjourney),
)


def read_prompt(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Generator in {id: {class_type, inputs}}; empty where this is no such graph."""
    nodes = dict(_nodes(graph))
    if not nodes:
        return {}
    sampling = next((inputs for _, inputs in nodes.values() if "steps" in inputs and "sampler_name" in inputs), {})
    return {
        "prompt": _words(nodes, sampling.get("positive")),
        "negative_prompt": _words(nodes, sampling.get("negative")),
        "steps": sampling.get("steps"),
        "sampler": sampling.get("sampler_name"),
        "seed": sampling.get("seed"),
        "models": [inputs[name] for _, inputs in nodes.values() for name in _MODELS if name in inputs],
        "nodes": [kind for kind, _ in nodes.values()],
    }


def read_workflow(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Generator in {nodes: [{type, widgets_values}]}; empty where this is no such graph."""
    listed = drawn.get("nodes")
    nodes = [node for node in listed[:MOST_NODES] if isinstance(node, dict)] if isinstance(listed, list) else []
    kinds = [kind for node in nodes if isinstance(kind := node.get("type"), str)]
    if not kinds or "links" not in drawn:
        return {}
    models = [
        node["widgets_values"][0]
        for node in nodes
        if str(node.get("type")).startswith(("CheckpointLoader", "UNETLoader"))
        and isinstance(node.get("widgets_values"), list)
        and node["widgets_values"]
    ]
    return {"models": models, "nodes": kinds}


def _nodes(graph: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Mapping[str, Any]]]]:
    for name, node in list(graph.items())[:MOST_NODES]:
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict):
            yield name, (node["class_type"], node["inputs"])


def _words(nodes: Mapping[str, tuple[str, Mapping[str, Any]]], link: Any) -> str | None:
    """The text of the node that an input is linked to: [id, output]."""
    if not (isinstance(link, list) and link and isinstance(link[0], str) and link[0] in nodes):
        return None
    text = nodes[link[0]][1].get("text")
    return text if isinstance(text, str) else None


def read_parameters(text: str) -> dict[str, Any]:
    """The fields of a Generator but for the tool; empty where the text has no such line."""
    starts = [match.start() for match in _STEPS.finditer(text)]
    if not starts:
        return {}
    prompts = text[: starts[-1]]
    prompt, _, negative = prompts.partition("\n" + _NEGATIVE) if not prompts.startswith(_NEGATIVE) else ("", "", prompts[len(_NEGATIVE) :])
    line = text[starts[-1] :].partition("\n")[0][:MOST_SETTINGS]
    settings = {match[1]: match[2].strip('" ') for match in _SETTING.finditer(line)}
    fields = {field: settings[name] for name, field in _FIELDS.items() if name in settings}
    numbers = {name.lower(): int(settings[name][:20]) for name in ("Steps", "Seed") if settings.get(name, "")[:20].isdecimal()}
    return {"prompt": prompt, "negative_prompt": negative, **fields, **numbers}
