"""Generator parameters are known by their structure, wherever the container keeps them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_app.identification.generators import generator_index, spelling_key
from ray_app.images.provenance.generators import read_generator
from tests.images import factory
from tests.images.provenance.files import png_with, said, user_comment, with_xmp, xmp

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
DRAWN = {
    "nodes": [
        {"type": "UNETLoader", "widgets_values": ["flux1-dev.safetensors"]},
        {"type": "KSampler"},
    ],
    "links": [],
}


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


def in_comment(text: bytes, code: bytes = b"") -> bytes:
    return factory.jpeg(exif=user_comment(code, text))


def in_exif(form: str = "JPEG", **tags: str) -> bytes:
    block = Image.Exif()
    for name, text in tags.items():
        block[
            {
                "make": 271,
                "model": 272,
                "software": 305,
                "description": 270,
                "document": 269,
                "scanner": 28672,
            }[name]
        ] = text
    return factory.encoded(factory.photo(), form, exif=block.tobytes())


def test_stable_diffusion_web_ui():
    assert generator(png_with(parameters=WEBUI)) == READ
    for code, encoding in (
        (b"UNICODE\0", "utf-16-be"),
        (b"UNICODE\0", "utf-16-le"),
        (b"ASCII\0\0\0", "utf-8"),
    ):
        for form in ("JPEG", "WEBP", "AVIF"):
            assert (
                generator(
                    factory.encoded(
                        factory.photo(), form, exif=user_comment(code, WEBUI.encode(encoding))
                    )
                )
                == READ
            )
    assert generator(factory.encoded(factory.photo(), "GIF", comment=WEBUI.encode())) == READ


def test_comfyui_ran_and_drawn():
    assert generator(png_with(prompt=json.dumps(GRAPH), workflow=json.dumps(DRAWN))) == RAN
    assert generator(graph_in_exif("WEBP", 272, "prompt", GRAPH)) == RAN
    both = generator(png_with(prompt=json.dumps({"4": GRAPH["4"]}), parameters=WEBUI))
    assert both == READ | {
        "tool": "ComfyUI",
        "models": RAN["models"],
        "nodes": ["CheckpointLoaderSimple"],
    }
    drawn = {
        "tool": "ComfyUI",
        "models": ["flux1-dev.safetensors"],
        "nodes": ["UNETLoader", "KSampler"],
    }
    assert generator(png_with(workflow=json.dumps(DRAWN))) == drawn
    assert said(graph_in_exif("WEBP", 271, "workflow", DRAWN)).camera is None


def test_graph_labels_have_any_case_and_blanks():
    graph, drawn = json.dumps(GRAPH), json.dumps(DRAWN)
    for prompt in (f"Prompt:{graph}", f"prompt: {graph}", f" PROMPT :\n{graph}"):
        for form in ("JPEG", "WEBP", "PNG", "AVIF"):
            found = said(in_exif(form, make=prompt, description=f"Workflow:{drawn}"))
            assert (json.loads(found.row())["generator"], found.camera) == (RAN, None)
    found = said(
        in_exif(
            "WEBP",
            model=f"prompt:{graph}",
            make='other_extension:{"a": 1}',
            document=f"workflow:{drawn}",
        )
    )
    assert (json.loads(found.row())["generator"], found.camera) == (RAN, None)
    assert generator(in_exif("WEBP", document=f"workflow:{drawn}"))["tool"] == "ComfyUI"
    assert generator(png_with(Prompt=graph)) == RAN


def test_graph_without_a_label_is_found():
    for record in (
        GRAPH,
        {"prompt": GRAPH, "workflow": DRAWN},
        {"prompt": json.dumps(GRAPH)},
        DRAWN,
        {"workflow": DRAWN},
    ):
        text = json.dumps(record)
        for data in (in_comment(text.encode()), in_exif(make=text), png_with(parameters=text)):
            found = said(data)
            assert (found.generator.tool, found.camera) == ("ComfyUI", None)


@pytest.mark.parametrize("size", [400_000, 3_000_000])
def test_large_graph_is_read(size):
    notes = {
        str(n): {"class_type": "Note", "inputs": {"text": "w" * 200}}
        for n in range(100, 100 + size // 250)
    }
    graph = json.dumps(notes | GRAPH)
    assert len(graph) > size
    for data in (png_with(prompt=graph), png_with(parameters=graph)):
        found = generator(data)
        assert (found["prompt"], found["seed"], found["models"]) == ("a cat", 5, RAN["models"])


NOVELAI = {"steps": 28, "sampler": "k_euler", "seed": 9, "uc": "dog"}
INVOKEAI = {"app_version": "4.2", "positive_prompt": "a cat", "steps": 30, "scheduler": "euler",
            "model": {"name": "sdxl", "hash": "blake3:1"}}  # fmt: skip
INVOKEAI_2 = {"app_version": "2.3", "model_weights": "sd-1.5",
              "image": {"prompt": [{"prompt": "a cat"}], "steps": 50, "sampler": "k_lms", "seed": 3}}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "a cat",
        "model": "flux",
        "steps": 8,
        "seed": 1,
        "swarm_version": "0.9",
    }
}
FOOOCUS = {
    "base_model": "juggernaut",
    "prompt": "a cat",
    "steps": 30,
    "seed": "77",
    "version": "Fooocus v2.3",
}
MFLUX = {
    "mflux_version": "0.11.0",
    "model": "schnell",
    "base_model": None,
    "seed": 5,
    "steps": 4,
    "prompt": "a cat",
}
RUINED = {
    "Prompt": "a cat",
    "Negative": "dog",
    "steps": 30,
    "base_model_name": "jugger",
    "software": "RuinedFooocus",
}
EASY = {"prompt": "a cat", "negative_prompt": "", "seed": 9, "num_inference_steps": 25, "sampler_name": "euler_a",
        "use_stable_diffusion_model": "sd-v1-4"}  # fmt: skip
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
        ({"parameters": json.dumps({"Software": "NovelAI", "Comment": json.dumps(NOVELAI), "Description": "a cat"})},
         {"tool": "NovelAI", **CAT, "negative_prompt": "dog", "steps": 28, "sampler": "k_euler", "seed": 9}),
        ({"parameters": json.dumps(MFLUX)}, {"tool": "mflux", "version": "0.11.0", **CAT, "steps": 4, "seed": 5, "model": "schnell"}),
        ({"parameters": json.dumps(RUINED)}, {"tool": "RuinedFooocus", **CAT, "negative_prompt": "dog", "steps": 30, "model": "jugger"}),
        ({"parameters": json.dumps(EASY)},
         {"tool": "Easy Diffusion", **CAT, "steps": 25, "sampler": "euler_a", "seed": 9, "model": "sd-v1-4"}),
        ({name: str(value) for name, value in EASY.items()},
         {"tool": "Easy Diffusion", **CAT, "steps": 25, "sampler": "euler_a", "seed": 9, "model": "sd-v1-4"}),
        ({"Prompt": "a cat", "Seed": "9", "Steps": "25", "Sampler": "euler_a", "Stable Diffusion model": "sd-v1-4"},
         {"tool": "Easy Diffusion", **CAT, "steps": 25, "sampler": "euler_a", "seed": 9, "model": "sd-v1-4"}),
        ({"Software": "Draw Things", "parameters": json.dumps({"c": "a cat", "uc": "dog", "steps": 8, "model": "flux"})},
         {"tool": "Draw Things", **CAT, "negative_prompt": "dog", "steps": 8, "model": "flux"}),
        ({"Dream": '"a cat" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms'}, {"tool": "InvokeAI", **CAT, "steps": 50, "seed": 123}),
        ({"AISystemUsed": "Pictures 3", "AISystemVersionUsed": "3.1", "AIPromptInformation": "a cat"},
         {"tool": "Pictures 3", "version": "3.1", **CAT}),
        ({"Credit": "Made with Google AI"}, {"tool": "Google AI"}),
    ],
)  # fmt: skip
def test_others(texts, told):
    assert (
        json.loads(
            read_generator(texts, texts.get("Software", "")).model_dump_json(exclude_defaults=True)
        )
        == told
    )


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "I took many Steps: 20, Sampler: a shop"},
        {"prompt": '{"3": {}}', "workflow": "{}"},
        {"prompt": "{" * 100_000},
        {"workflow": '{"nodes": [1, {"type": 5}], "links": []}'},
        {"Comment": '{"steps": 1, "sampler": "x"}'},
        {"sd-metadata": '{"image": []}'},
        {"parameters": '{"base_model": "resnet", "prompt": "what is shown?"}'},  # of any program
        {"Description": "Steps: 20, Sampler: the shop\nwhere we went"},
        {"parameters": "Cooked it in a few Steps: 3, Size: 2 plates"},
        {"prompt": "a cat", "Seed": "9", "Steps": "25"},
        {"Credit": "Jane Doe"},
    ],
)
def test_what_is_not_their_structure_is_not_theirs(texts):
    assert read_generator(texts, "Paint") is None


SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Model: foo"
ONE_LINE = {"tool": "Stable Diffusion web UI", "prompt": "a red bicycle", "negative_prompt": "text", "steps": 20, "sampler": "Euler a",
            "seed": 5, "model": "foo"}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        f"a red bicycle\rNegative prompt: text\r{SETTINGS}",
        f"a red bicycle\r\nNegative prompt: text\r\n{SETTINGS}\r\n",
        f"a red bicycle Negative prompt: text {SETTINGS}",
        f"a red bicycle Negative prompt: text {SETTINGS}. Steps: 9, nothing else",
    ],
)
def test_web_ui_parameters_need_no_lines_of_their_own(text):
    for data in (
        in_comment(text.encode()),
        png_with(parameters=text),
        factory.jpeg(comment=text.encode()),
    ):
        found = generator(data)
        assert {**found, "model": found["model"][:3]} == ONE_LINE


def test_web_ui_parameters_after_a_full_stop_are_read():
    for glue in (".", ",.", ". "):
        found = generator(png_with(parameters=f"a red bicycle, best quality{glue}{SETTINGS}"))
        assert (found["tool"], found["seed"]) == ("Stable Diffusion web UI", 5)


@pytest.mark.parametrize(
    ("setting", "tool"),
    [
        ("Version: v1.10.1", "Stable Diffusion web UI"),
        ("Version: f2.0.1v1.10.1-previous-659-gc055f2d4", "Stable Diffusion web UI Forge"),
        ("App: SD.Next, Version: 8b73cb6", "SD.Next"),
        ("Version: Fooocus v2.5.5", "Fooocus"),
        ("Version: ComfyUI", "ComfyUI"),
    ],
)
def test_web_ui_parameters_are_attributed_to_who_wrote_them(setting, tool):
    assert generator(png_with(parameters=f"a cat\n{SETTINGS}, {setting}"))["tool"] == tool


def test_web_ui_parameters_name_the_program_of_the_file():
    assert (
        generator(png_with(parameters=f"a cat\n{SETTINGS}", Software="Fooocus v2.5"))["tool"]
        == "Fooocus"
    )
    assert (
        generator(png_with(parameters=f"a cat\n{SETTINGS}", Software="Adobe Photoshop"))["tool"]
        == "Stable Diffusion web UI"
    )


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "AVIF"])
def test_user_comment_is_read_in_every_encoding(form):
    text = f"ein rotes Fahrrad, 自行车\nNegative prompt: text\n{SETTINGS}"
    for code, octets in (
        (b"", text.encode()),
        (b"ASCII\0\0\0", text.encode()),
        (b"\0" * 8, text.encode()),
        (b"UNICODE\0", text.encode("utf-16-be")),
        (b"UNICODE\0", text.encode("utf-16-le")),
        (b"Unicode\0", text.encode("utf-16-le")),
        (b"UNICODE\0", text.encode("utf-16")),
        (b"UNICODE\0", text.encode()),
        (b"ASCII\0\0\0", text.encode("utf-16-le")),
        (b"", text.encode("utf-16-be")),
        (b"UNICODE\0", text.encode("utf-16-le") + bytes(40)),
    ):
        found = generator(factory.encoded(factory.photo(), form, exif=user_comment(code, octets)))
        assert found["prompt"] == "ein rotes Fahrrad, 自行车", (code, octets[:20])
    without_code = generator(
        factory.encoded(factory.photo(), form, exif=user_comment(b"", json.dumps(MFLUX).encode()))
    )
    assert without_code["tool"] == "mflux"


@pytest.mark.parametrize(
    ("software", "make", "model", "told"),
    [
        (
            "AI generated;txt2img;flux",
            "Black Forest Labs",
            "flux-schnell",
            {"tool": "FLUX (Black Forest Labs)", "model": "flux-schnell"},
        ),
        (
            "ai  generated; img2img; FLUX",
            "Black Forest Labs",
            "x",
            {"tool": "FLUX (Black Forest Labs)", "model": "x"},
        ),
        ("AI generated;t2i;qwen", "Qwen", "qwen-image", {"tool": "Qwen", "model": "qwen-image"}),
        ("AI generated", "", "", {"tool": "AI"}),
        (
            "",
            "Black Forest Labs & others",
            "flux-dev",
            {"tool": "FLUX (Black Forest Labs)", "model": "flux-dev"},
        ),
        ("", "Stability AI", "", {"tool": "Stability AI"}),
        ("", "Midjourney", "7", {"tool": "Midjourney", "model": "7"}),
        ("", "Google", "Imagen 3", {"tool": "Google", "model": "Imagen 3"}),
        ("", "Tencent", "hunyuan-dit", {"tool": "Tencent", "model": "hunyuan-dit"}),
    ],
)
def test_makers_of_generators_are_no_cameras(software, make, model, told):
    tags = {
        name: text
        for name, text in {"software": software, "make": make, "model": model}.items()
        if text
    }
    found = said(in_exif(**tags))
    assert (json.loads(found.row())["generator"], found.camera, found.ai_declared) == (
        told,
        None,
        True,
    )


def test_every_known_generator_is_no_camera():
    index = generator_index()
    names = {
        name
        for key, entry in index.generators.items()
        for name in (key, entry.title, *entry.aliases)
    }
    names = {name for name in names if len(spelling_key(name)) > 4 and name.isascii()}
    assert len(names) > 100
    for name in names:
        for spelled in (name, name.upper(), name.replace("-", " ")):
            found = said(in_exif(model=spelled))
            assert found is None or (found.camera, found.generator) == (None, None), spelled


@pytest.mark.parametrize(
    ("make", "model"),
    [
        ("SIGMA", "SD15"),
        ("Google", "Pixel 9"),
        ("NIKON", "Z 6"),
        ("HUAWEI", "P30"),
        ("Camera: one", "two: {three"),
        ("[none]", "{"),
        *(
            (make, "X1")
            for make in (
                "Adobe",
                "Tencent",
                "Alibaba",
                "ByteDance",
                "Kuaishou",
                "Runway",
                "Playground",
                "fal",
                "Firefly",
            )
        ),
        ("Qwenda", "Q1"),
        ("OpenAir", "O1"),
        ("Ideogramma", "I1"),
        ("HAWKEYE", "Firefly"),
        ("Leica", "GLIDE"),
        ("Apple", "Spade"),
    ],
)
def test_cameras_stay_cameras(make, model):
    found = said(in_exif(make=make, model=model))
    assert (found.camera.make, found.generator, found.ai_declared) == (make, None, False)


@pytest.mark.parametrize(
    ("software", "told"),
    [
        ("AI-generated; none", None),
        ("AI generated;img2img;flux", {"tool": "FLUX (Black Forest Labs)"}),
        ("AI generated;upscaled;Enlarger 3", {"tool": "Enlarger 3"}),
        ("AI generated", {"tool": "AI"}),
        ("Fooocusing 2", None),
    ],
)
def test_camera_is_never_named_as_the_generator(software, told):
    found = said(in_exif(software=software, make="Canon", model="EOS R5"))
    assert (found.camera.make, found.ai_declared) == ("Canon", told is not None)
    assert json.loads(found.row()).get("generator") == told


@pytest.mark.parametrize(
    "texts",
    [
        {"Description": "Great walk. Steps: 9500, Model: Fitbit, Size: M"},
        {"Comment": "Steps: 9500, Model: Fitbit, Size: M"},
        {"parameters": json.dumps({"nodes": [{"type": "start"}], "links": []})},
        {"workflow": json.dumps({"nodes": [{"type": "start", "id": 1}], "links": [1]})},
        {"AISystemUsed": "None"},
        {"AISystemUsed": " n/a"},
    ],
)
def test_text_of_other_programs_names_no_generator(texts):
    assert read_generator(texts, "Paint") is None


def test_xmp_has_texts_of_generators():
    cases = {
        'xmp:CreatorTool="Draw Things"': (
            f"<exif:UserComment><rdf:Alt><rdf:li>{json.dumps({'c': 'a cat', 'steps': 8})}</rdf:li></rdf:Alt></exif:UserComment>",
            {"tool": "Draw Things", "prompt": "a cat", "steps": 8},
        ),
        "": (f"<dc:description><rdf:Alt><rdf:li>a cat\n{SETTINGS}</rdf:li></rdf:Alt></dc:description>",
             {k: v for k, v in ONE_LINE.items() if k != "negative_prompt"} | {"prompt": "a cat"}),
        'photoshop:Credit="Made with Google AI"': ("", {"tool": "Google AI"}),
        'e:AISystemUsed="Pictures 3" e:AIPromptInformation="a cat"': ("", {"tool": "Pictures 3", "prompt": "a cat"}),
    }  # fmt: skip
    spaces = 'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" ' \
        'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '  # fmt: skip
    for attributes, (element, told) in cases.items():
        for form in ("JPEG", "PNG", "WEBP"):
            assert generator(with_xmp(xmp(spaces + attributes, element), form)) == told


def test_huge_numbers_are_left_out():
    for digits in ("9" * 5000, "٩" * 5000):
        found = generator(
            png_with(
                **{
                    "prompt": "a cat",
                    "Seed": digits,
                    "Steps": digits,
                    "Stable Diffusion model": "sd",
                }
            )
        )
        assert found == {"tool": "Easy Diffusion", **CAT, "model": "sd"}
    text = json.dumps({"use_stable_diffusion_model": "sd", "seed": 0}).replace("0", "9" * 3000)
    assert generator(png_with(parameters=text)) == {"tool": "Easy Diffusion", "model": "sd"}


WORDS = [
    "a",
    "Steps: 20, S",
    "\n",
    "Negative prompt:",
    "{",
    '"',
    ":",
    ",",
    "\\",
    "nodes",
    "links",
    "class_type",
    "[",
    "]",
    "}",
]
NAMES = ["mflux_version", "Software", "Comment", "use_stable_diffusion_model", "Stable Diffusion model", "c", "version",
         "nodes", "links", "class_type", "inputs", "image", "prompt", "model", "base_model", "type", "steps", "sampler_name",
         "positive", "text", "widgets_values", "sui_image_params", "positive_prompt", "3"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
TEXTS = (
    st.text(max_size=80)
    | st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
    | VALUES.map(json.dumps)
)
KEYWORDS = st.sampled_from(["parameters", "prompt", "workflow", "Comment", "Description", "sd-metadata", "invokeai_metadata", "dream",
                            "use_stable_diffusion_model", "aisystemused", "credit"])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(KEYWORDS, TEXTS),
    st.sampled_from(["", "NovelAI", "Draw Things", "AI generated;"]),
    TEXTS,
)
def test_any_texts_give_a_generator_or_none(texts, software, name):
    told = read_generator(texts, software, name, name)
    if told is not None:
        json.loads(told.model_dump_json(), parse_constant=lambda name: pytest.fail(name))
