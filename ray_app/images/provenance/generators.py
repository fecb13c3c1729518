"""Find out from metadata which program generated an image, and its parameters (`read_generator`).

The programs are Stable Diffusion web UI, ComfyUI, NovelAI, InvokeAI, Fooocus, Midjourney, and
others. `read_aigc_label` reads the label that services in China write. `is_generator` distinguishes
names of generators from names of cameras.
"""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from ray_app.config import config_root, read_mapping
from ray_app.images.provenance.comfyui import (
    parse_json_object,
    read_graph,
    read_prompt,
    read_workflow,
)
from ray_app.images.provenance.statement import (
    AIGC_LEVELS,
    UUID,
    AigcLabel,
    Generator,
    to_plain_line,
)
from ray_app.images.provenance.webui import WEB_UI, read_parameters

MAX_VALUES = (
    2_000_000  # In one JSON: at most 150 MB of objects. A graph of 16 MiB has half this number.
)
_MAX_DIGITS = 20
_JSON = re.compile(r"\s*[{\[]")

Texts = Mapping[str, str]

# Names of programs that generate images, at the start of EXIF's Software, PNG's or XMP's
# CreatorTool.
_NAMES = ("NovelAI", "InvokeAI", "Midjourney", "DALL·E", "DALL-E", "ChatGPT", "Adobe Firefly", "ComfyUI", "RuinedFooocus", "Fooocus",
          "SwarmUI", "StableSwarmUI", "Draw Things", "Easy Diffusion", "mflux", "SD.Next", "Stable Diffusion", "AUTOMATIC1111",
          "Bing Image Creator", "DreamStudio", "Ideogram", "OpenAI", "Google Gemini", "Google Imagen", "xAI Grok", "Grok Imagine")  # fmt: skip
_NAME = re.compile(rf"({'|'.join(map(re.escape, _NAMES))})(?![^\W\d_])", re.IGNORECASE)
_CANONICAL_NAMES = {name.casefold(): name for name in _NAMES}
# Other programs have these names, too, or begin with them. So nothing but a version may follow.
_SERVICE = re.compile(r"(Gemini|Imagen|Grok|Sora)(?:[ -]v?\d.*)?", re.IGNORECASE)
# The code of black-forest-labs/flux writes this text.
_AI_GENERATED = re.compile(r"\s*AI[ -]?generated\b[\s;,:]*", re.IGNORECASE)
_EMPTY_NAMES = {"", "none", "no", "n/a"}
_CREDITS = {"made with google ai": "Google AI"}
_MIDJOURNEY = re.compile(rf"Job ID: {UUID}\s*\Z")
# Grok writes a signature as ImageDescription, and the number of the image as Artist.
_GROK_SIGNATURE, _GROK_NUMBER = re.compile(r"Signature: [A-Za-z0-9+/]{40,}=*"), re.compile(UUID)
_EASY_DIFFUSION = (
    {"prompt": "prompt", "negative_prompt": "negative_prompt", "steps": "num_inference_steps", "sampler": "sampler_name", "seed": "seed",
     "model": "use_stable_diffusion_model"},
    {"prompt": "prompt", "negative_prompt": "negative prompt", "steps": "steps", "sampler": "sampler", "seed": "seed",
     "model": "stable diffusion model"},
)  # fmt: skip
# InvokeAI 2 writes this text.
_DREAM = re.compile(r'"(?P<prompt>.*)" -s ?(?P<steps>\d{1,6}) -S ?(?P<seed>\d{1,20}) ', re.DOTALL)

_SEPARATORS = re.compile(r"[\s._-]+")
_FLUX = "FLUX (Black Forest Labs)"
# Makers of generators that also make cameras or other things, normalised.
_OTHER_MAKERS = {
    "google",
    "adobe",
    "tencent",
    "alibaba",
    "bytedance",
    "kuaishou",
    "runway",
    "playground",
    "fal",
}
_MAKER_PREFIXES = re.compile(
    r"\s*(black[\s._-]*forest[\s._-]*labs|stability[\s._-]*ai|openai|qwen)(?![^\W\d_])",
    re.IGNORECASE,
)


def merge_texts(*sources: Texts) -> dict[str, str]:
    """Merge the metadata texts of several sources, such as PNG and EXIF, into one dict by keyword.

    Keywords are changed to lower case without surrounding blanks. If several sources have the same
    keyword, the text of the last source is kept.
    """
    return {
        keyword.strip().casefold(): text for texts in sources for keyword, text in texts.items()
    }


def find_complex(texts: Texts) -> list[str]:
    """Return the keywords of metadata texts that must not be passed to `read_generator`.

    These are JSON texts with too many values, which would need much memory.
    """
    return [
        keyword
        for keyword, text in texts.items()
        if len(text) > MAX_VALUES
        and _JSON.match(text)
        and text.count(",") + text.count("[") + text.count("{") > MAX_VALUES
    ]


def read_generator(
    texts: Texts, software: str = "", make: str = "", model: str = ""
) -> Generator | None:
    """Return the image generator that a file's metadata names, with its parameters, or None.

    Keywords may have any case. `make` and `model` are those of a camera in EXIF, `software` is the
    program in EXIF, PNG, or XMP.
    """
    merged = merge_texts(texts, {"software": software})
    for keywords, read in _READERS:
        if not merged.keys().isdisjoint(keywords) and (fields := read(merged)):
            return Generator(**fields)
    for fields in (
        _read_declaration(merged, make, model),
        _match_program(software),
        _match_service(software),
        _read_credit(merged),
        _read_maker(merged, make, model),
    ):
        if fields:
            return Generator(**fields)
    return None


def read_aigc_label(texts: Texts) -> AigcLabel | None:
    """Return the label of GB 45438-2025 in a file's metadata, or None.

    It has a text of its own, or is in a JSON object under the key `AIGC`. `texts` are the texts of
    the metadata by keyword in lower case.
    """
    for keyword in ("aigc", "parameters", "description", "comment"):
        text = texts.get(keyword, "")
        record = parse_json_object(text) if keyword == "aigc" or '"AIGC"' in text else {}
        label = parse_json_object(record.get("AIGC")) or (record if keyword == "aigc" else {})
        if level := AIGC_LEVELS.get(to_plain_line(label.get("Label"))):
            return AigcLabel(
                level=level,
                producer=label.get("ContentProducer"),
                propagator=label.get("ContentPropagator"),
            )
    return None


def _read_declaration(texts: Texts, make: str, model: str) -> dict[str, Any]:
    """Read `AI generated;txt2img;flux` in Software.

    The maker of the model may be in place of a camera's maker.
    """
    declaration = _AI_GENERATED.match(texts["software"])
    if declaration is None:
        return {}
    name = texts["software"][declaration.end() :].rpartition(";")[2].strip()
    if name.casefold() in _EMPTY_NAMES - {""}:
        return {}
    maker, model = (make, model) if not make or _is_maker(make, model) else ("", "")
    tool = _FLUX if name.casefold() == "flux" else maker or name or "AI"
    return {"tool": tool, "model": model, "prompt": texts.get("description")}


def _match_program(software: str) -> dict[str, Any]:
    """Return the program whose name Software begins with."""
    match = _NAME.match(software)
    return {"tool": _CANONICAL_NAMES[match[1].casefold()]} if match else {}


def _match_service(software: str) -> dict[str, Any]:
    """Return the service whose name Software is, with or without a version."""
    match = _SERVICE.fullmatch(software.strip())
    return {"tool": match[1].capitalize()} if match else {}


def _read_credit(texts: Texts) -> dict[str, Any]:
    tool = _CREDITS.get(texts.get("credit", "").casefold())
    return {"tool": tool} if tool else {}


def _read_maker(texts: Texts, make: str, model: str) -> dict[str, Any]:
    """Read a maker of generators in place of a camera's maker."""
    if not _is_maker(make, model):
        return {}
    tool = _FLUX if _normalise(make).startswith("blackforestlabs") else make
    return {"tool": tool, "model": model, "prompt": texts.get("description")}


def is_generator(make: str, model: str) -> bool:
    """Return whether the camera's make and model are the names of a generator or of its maker."""
    return _is_maker(make, model) if _normalise(make) else _is_generator_name(model)


@lru_cache(256)
def _is_maker(make: str, model: str) -> bool:
    """Return whether Make is a maker of generators.

    Other names count only together with the name of a generator.
    """
    name, catalogue = _normalise(make), _load_names()
    if (
        (name in catalogue.makers and name not in _OTHER_MAKERS)
        or _MAKER_PREFIXES.match(make)
        or _match_program(make)
    ):
        return True
    return (name in catalogue.makers or name in catalogue.names) and _is_generator_name(model)


def _is_generator_name(model: str) -> bool:
    return _normalise(model) in _load_names().names


class _GeneratorNames(NamedTuple):
    """All names of generators, families, and makers in configs/generators.yaml, normalised."""

    names: frozenset[str]
    makers: frozenset[str]


@cache
def _load_names() -> _GeneratorNames:
    mapping = read_mapping(config_root() / "generators.yaml")
    families, entries = mapping["families"].values(), mapping["generators"].items()
    names = {
        name for key, entry in entries for name in (key, entry["title"], *entry.get("aliases", ()))
    }
    names |= {family["title"] for family in families}
    makers = {maker for family in families for maker in family.get("maker", "").split(",")}
    return _GeneratorNames(
        frozenset(map(_normalise, names)), frozenset(map(_normalise, makers - {""}))
    )


def _normalise(name: str) -> str:
    """Remove what does not distinguish names: case, blanks, dots, dashes and underscores."""
    return _SEPARATORS.sub("", name.casefold())


def _read_webui(texts: Texts) -> dict[str, Any]:
    """Read the text of Stable Diffusion web UI and related programs.

    Related programs may name themselves as the program that wrote the file.
    """
    for keyword in ("parameters", "comment", "description"):
        if fields := read_parameters(texts.get(keyword, ""), is_remark=keyword == "description"):
            program = _match_program(texts["software"]).get("tool", "")
            is_kin = (
                fields["tool"] == WEB_UI
                and program
                and not program.startswith(("Stable Diffusion", "AUTOMATIC1111"))
            )
            return fields | ({"tool": program} if is_kin else {})
    return {}


def _read_comfyui(texts: Texts) -> dict[str, Any]:
    """Read ComfyUI's graph as it ran (`prompt`) or as it was drawn (`workflow`).

    Some nodes also write the text of the web UI.
    """
    graph = read_prompt(parse_json_object(texts.get("prompt"))) or read_workflow(
        parse_json_object(texts.get("workflow"))
    )
    line = _read_webui(texts)
    return {**graph, **line, "tool": "ComfyUI"} if graph else {}


def _read_novelai(texts: Texts) -> dict[str, Any]:
    comment = parse_json_object(texts.get("comment"))
    if texts["software"].strip() != "NovelAI" or not {"steps", "sampler"} <= comment.keys():
        return {}
    return {
        "tool": "NovelAI",
        "prompt": texts.get("description") or comment.get("prompt"),
        "negative_prompt": comment.get("uc"),
        "model": texts.get("source"),
        **_pick(comment, ("steps", "sampler", "seed")),
    }


def _read_invokeai(texts: Texts) -> dict[str, Any]:
    record = parse_json_object(texts.get("invokeai_metadata"))
    if "positive_prompt" in record:
        model = record.get("model")
        model = model if isinstance(model, dict) else {}
        return {"tool": "InvokeAI", "version": record.get("app_version"), "prompt": record["positive_prompt"],
                "sampler": record.get("scheduler"),
                "model": model.get("name") or model.get("model_name"), "model_hash": model.get("hash"),
                **_pick(record, ("negative_prompt", "steps", "seed"))}  # fmt: skip
    record = parse_json_object(texts.get("sd-metadata"))
    image = record.get("image")
    if isinstance(image, dict):
        prompt = image.get("prompt")
        prompt = (
            prompt[0].get("prompt")
            if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict)
            else prompt
        )
        return {"tool": "InvokeAI", "version": record.get("app_version"), "prompt": prompt, "model": record.get("model_weights"),
                "model_hash": record.get("model_hash"), **_pick(image, ("steps", "sampler", "seed"))}  # fmt: skip
    if dream := _DREAM.match(texts.get("dream", "")):
        return {
            "tool": "InvokeAI",
            "prompt": dream["prompt"],
            "steps": int(dream["steps"]),
            "seed": int(dream["seed"]),
        }
    return {}


def _read_json(texts: Texts) -> dict[str, Any]:
    """Read JSON that programs write in place of the text of the web UI.

    It is in PNG's `parameters` or in a UserComment.
    """
    record = parse_json_object(texts.get("parameters"))
    for read in _RECORD_READERS if record else ():
        if fields := read(record, texts):
            return fields
    return {}


def _read_swarmui(record: Mapping[str, Any], _: Texts) -> dict[str, Any]:
    swarm = record.get("sui_image_params")
    if not isinstance(swarm, dict):
        return {}
    return {"tool": "SwarmUI", "version": swarm.get("swarm_version"), "negative_prompt": swarm.get("negativeprompt"),
            **_pick(swarm, ("prompt", "model", "steps", "sampler", "seed"))}  # fmt: skip


def _read_mflux(record: Mapping[str, Any], _: Texts) -> dict[str, Any]:
    if "mflux_version" not in record:
        return {}
    return {"tool": "mflux", "version": record["mflux_version"],
            **_pick(record, ("prompt", "negative_prompt", "steps", "seed", "model"))}  # fmt: skip


def _read_fooocus(record: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """Read the record of Fooocus, which names itself in `version`.

    Forks name themselves in `software`.
    """
    version, software = str(record.get("version")), str(record.get("software") or texts["software"])
    if (
        "fooocus" not in f"{version} {software}".casefold()
        and "fooocus_scheme" not in texts
        and "metadata_scheme" not in record
    ):
        return {}
    program = _match_program(software) or {"tool": "Fooocus"}
    return {**program, "model": record.get("base_model") or record.get("base_model_name"), "model_hash": record.get("base_model_hash"),
            "prompt": record.get("prompt", record.get("Prompt")), "negative_prompt": record.get("negative_prompt", record.get("Negative")),
            **_pick(record, ("version", "steps", "sampler", "seed"))}  # fmt: skip


def _read_easy_diffusion(record: Mapping[str, Any], _: Texts) -> dict[str, Any]:
    """Read the record of Easy Diffusion, under the names of its keys or of its page."""
    values = {name.casefold(): value for name, value in record.items()}
    names = next((names for names in _EASY_DIFFUSION if names["model"] in values), None)
    return (
        {}
        if names is None
        else {
            "tool": "Easy Diffusion",
            **{field: values.get(name) for field, name in names.items()},
        }
    )


def _read_draw_things(record: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    if not texts["software"].startswith("Draw Things") or "c" not in record:
        return {}
    return {"tool": "Draw Things", "prompt": record["c"], "negative_prompt": record.get("uc"),
            **_pick(record, ("steps", "sampler", "seed", "model"))}  # fmt: skip


def _read_novelai_record(record: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """Read NovelAI's texts of a PNG in one record, as its WebP has them."""
    software = record.get("Software") or texts["software"]
    inner = {key.casefold(): text for key, text in record.items() if isinstance(text, str)}
    return _read_novelai({**inner, "software": str(software)})


def _read_graph(record: Mapping[str, Any], _: Texts) -> dict[str, Any]:
    graph = read_graph(record)
    return {**graph, "tool": "ComfyUI"} if graph else {}


def _read_easy_diffusion_texts(texts: Texts) -> dict[str, Any]:
    """Read the texts of Easy Diffusion, which has one text for each setting."""
    fields = _read_easy_diffusion(texts, texts)
    digits = {name: str(fields.get(name))[:_MAX_DIGITS] for name in ("steps", "seed")}
    return {**fields, **{name: int(text) for name, text in digits.items() if text.isdecimal()}}


def _read_midjourney(texts: Texts) -> dict[str, Any]:
    description = texts.get("description", "")
    match = _MIDJOURNEY.search(description, max(0, len(description) - 100))
    return {"tool": "Midjourney", "prompt": description[: match.start()]} if match else {}


def _read_grok(texts: Texts) -> dict[str, Any]:
    is_grok = _GROK_SIGNATURE.fullmatch(texts.get("description", "").strip()) and (
        _GROK_NUMBER.fullmatch(texts["artist"].strip())
    )
    return {"tool": "Grok"} if is_grok else {}


def _read_ai_system(texts: Texts) -> dict[str, Any]:
    """Read IPTC's own properties (Photo Metadata Standard 2025.1)."""
    tool = texts["aisystemused"]
    if tool.strip().casefold() in _EMPTY_NAMES:
        return {}
    return {
        "tool": tool,
        "version": texts.get("aisystemversionused"),
        "prompt": texts.get("aipromptinformation"),
    }


def _pick(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


_RECORD_READERS = (
    _read_swarmui,
    _read_mflux,
    _read_fooocus,
    _read_easy_diffusion,
    _read_draw_things,
    _read_novelai_record,
    _read_graph,
)
# Each reader with the keywords of which it needs one, in the order in which readers are tried.
_READERS = (
    (("invokeai_metadata", "sd-metadata", "dream"), _read_invokeai),
    (("parameters",), _read_json),
    (("prompt", "workflow"), _read_comfyui),
    (("use_stable_diffusion_model", "stable diffusion model"), _read_easy_diffusion_texts),
    (("parameters", "comment", "description"), _read_webui),
    (("comment",), _read_novelai),
    (("description",), _read_midjourney),
    (("artist",), _read_grok),
    (("aisystemused",), _read_ai_system),
)
