"""Generator parameters are known by their structure, wherever the container keeps them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_app.images.provenance.generators import read_generator
from tests.images import factory
from tests.images.provenance.files import png_with, said, user_comment

WEBUI = """a cat, (sleeping:1.2)
on two lines
Negative prompt: ugly, blurry
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 4294967295, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, """ \
    'Lora hashes: "a: 1, b: 2", Version: v1.6.0'  # fmt: skip
READ = {"tool": "Stable Diffusion web UI", "version": "v1.6.0", "prompt": "a cat, (sleeping:1.2) on two lines",
        "negative_prompt": "ugly, blurry", "steps": 20, "sampler": "DPM++ 2M Karras", "seed": 4294967295, "model": "v1-5-pruned",
        "model_hash": "6ce0161689"}  # fmt: skip
GRAPH = {
    "3": {"class_type": "KSampler",
          "inputs": {"seed": 5, "steps": 30, "sampler_name": "euler", "positive": ["6", 0], "negative": ["7", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
}  # fmt: skip
RAN = {"tool": "ComfyUI", "prompt": "a cat", "negative_prompt": "ugly", "steps": 30, "sampler": "euler", "seed": 5,
       "models": ["sd_xl_base_1.0.safetensors"], "nodes": ["KSampler", "CheckpointLoaderSimple", "CLIPTextEncode"]}  # fmt: skip
DRAWN = {"nodes": [{"type": "UNETLoader", "widgets_values": ["flux1-dev.safetensors"]}, {"type": "KSampler"}], "links": []}


def generator(data):
    told = said(data)
    if told is None or told.generator is None:
        return None
    assert told.ai_declared
    return json.loads(told.row())["generator"]


def graph_in_exif(form, tag, name, graph):
    block = Image.Exif()
    block[tag] = f"{name}:{json.dumps(graph)}"
    return factory.encoded(factory.photo(), form, exif=block.tobytes())


def test_stable_diffusion_web_ui():
    assert generator(png_with(parameters=WEBUI)) == READ
    for code, encoding in ((b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"), (b"ASCII\0\0\0", "utf-8")):
        for form in ("JPEG", "WEBP", "AVIF"):
            assert generator(factory.encoded(factory.photo(), form, exif=user_comment(code, WEBUI.encode(encoding)))) == READ
    assert generator(factory.encoded(factory.photo(), "GIF", comment=WEBUI.encode())) == READ


def test_comfyui_ran_and_drawn():
    assert generator(png_with(prompt=json.dumps(GRAPH), workflow=json.dumps(DRAWN))) == RAN
    assert generator(graph_in_exif("WEBP", 272, "prompt", GRAPH)) == RAN
    both = generator(png_with(prompt=json.dumps({"4": GRAPH["4"]}), parameters=WEBUI))
    assert both == READ | {"tool": "ComfyUI", "models": RAN["models"], "nodes": ["CheckpointLoaderSimple"]}
    drawn = {"tool": "ComfyUI", "models": ["flux1-dev.safetensors"], "nodes": ["UNETLoader", "KSampler"]}
    assert generator(png_with(workflow=json.dumps(DRAWN))) == drawn
    assert said(graph_in_exif("WEBP", 271, "workflow", DRAWN)).camera is None


NOVELAI = {"steps": 28, "sampler": "k_euler", "seed": 9, "uc": "dog"}
INVOKEAI = {"app_version": "4.2", "positive_prompt": "a cat", "steps": 30, "scheduler": "euler",
            "model": {"name": "sdxl", "hash": "blake3:1"}}  # fmt: skip
INVOKEAI_2 = {"app_version": "2.3", "model_weights": "sd-1.5",
              "image": {"prompt": [{"prompt": "a cat"}], "steps": 50, "sampler": "k_lms", "seed": 3}}  # fmt: skip
SWARM = {"sui_image_params": {"prompt": "a cat", "model": "flux", "steps": 8, "seed": 1, "swarm_version": "0.9"}}
FOOOCUS = {"base_model": "juggernaut", "prompt": "a cat", "steps": 30, "seed": "77", "version": "Fooocus v2.3"}
CAT = {"prompt": "a cat"}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"Software": "NovelAI", "Source": "SDXL 7B", "Description": "a cat", "Comment": json.dumps(NOVELAI)},
         {"tool": "NovelAI", **CAT, "negative_prompt": "dog", "steps": 28, "sampler": "k_euler", "seed": 9, "model": "SDXL 7B"}),
        ({"invokeai_metadata": json.dumps(INVOKEAI)},
         {"tool": "InvokeAI", "version": "4.2", **CAT, "steps": 30, "sampler": "euler", "model": "sdxl", "model_hash": "blake3:1"}),
        ({"sd-metadata": json.dumps(INVOKEAI_2)},
         {"tool": "InvokeAI", "version": "2.3", **CAT, "steps": 50, "sampler": "k_lms", "seed": 3, "model": "sd-1.5"}),
        ({"parameters": json.dumps(SWARM)}, {"tool": "SwarmUI", "version": "0.9", **CAT, "steps": 8, "seed": 1, "model": "flux"}),
        ({"parameters": json.dumps(FOOOCUS)}, {"tool": "Fooocus", "version": "Fooocus v2.3", **CAT, "steps": 30, "model": "juggernaut"}),
        ({"Description": "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"}, {"tool": "Midjourney", "prompt": "a cat --v 6"}),
        ({"Software": "DALL·E 3"}, {"tool": "DALL·E"}),
    ],
)  # fmt: skip
def test_others(texts, told):
    assert json.loads(read_generator(texts, texts.get("Software", "")).model_dump_json(exclude_defaults=True)) == told


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "I took many Steps: 20, Sampler: a shop"},
        {"prompt": '{"3": {}}', "workflow": "{}"},
        {"prompt": "{" * 100_000},
        {"workflow": '{"nodes": [1, {"type": 5}], "links": []}'},
        {"Comment": '{"steps": 1, "sampler": "x"}'},
        {"sd-metadata": '{"image": []}'},
    ],
)
def test_what_is_not_their_structure_is_not_theirs(texts):
    assert read_generator(texts, "Paint") is None


WORDS = ["a", "Steps: 20, S", "\n", "Negative prompt:", "{", '"', ":", ",", "\\", "nodes", "links", "class_type", "[", "]", "}"]
NAMES = ["nodes", "links", "class_type", "inputs", "image", "prompt", "model", "base_model", "type", "steps", "sampler_name",
         "positive", "text", "widgets_values", "sui_image_params", "positive_prompt", "3"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.text(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=40).map("".join) | VALUES.map(json.dumps)
KEYWORDS = st.sampled_from(["parameters", "prompt", "workflow", "Comment", "Description", "sd-metadata", "invokeai_metadata"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYWORDS, TEXTS), st.sampled_from(["", "NovelAI"]))
def test_any_texts_give_a_generator_or_none(texts, software):
    told = read_generator(texts, software)
    if told is not None:
        json.loads(told.model_dump_json(), parse_constant=lambda name: pytest.fail(name))
