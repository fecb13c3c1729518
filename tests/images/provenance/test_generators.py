"""Generator parameters are known by their structure, wherever the container keeps them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_app.identification.generators import generator_index, spelling_key
from ray_app.images.provenance.generators import merge_texts, read_aigc_label, read_generator
from ray_app.images.provenance.statement import MAX_CHARACTERS
from tests.make import images
from tests.make.provenance.files import WEBUI, png_with, said, user_comment, with_xmp, xmp

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
DRAWN = {"nodes": [{"type": "UNETLoader", "widgets_values": ["flux1-dev.safetensors"]}]}
DRAWN["nodes"].append({"type": "KSampler"})
DRAWN["links"] = []
TAGS = {
    "make": 271,
    "model": 272,
    "software": 305,
    "description": 270,
    "document": 269,
    "artist": 315,
}


def generator(data):
    found = said(data)
    if found is None or found.generator is None:
        return None
    assert found.ai_declared
    return json.loads(found.row())["generator"]


def with_exif(block: bytes, form: str = "JPEG") -> bytes:
    return images.encoded(images.photo(), form, exif=block)


def in_comment(text: bytes, code: bytes = b"") -> bytes:
    return images.jpeg(exif=user_comment(code, text))


def in_exif(form: str = "JPEG", **tags: str) -> bytes:
    block = Image.Exif()
    for name, text in tags.items():
        block[TAGS[name]] = text
    return with_exif(block.tobytes(), form)


UTF16 = (b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le")


def test_web_ui_parameters_are_read_in_every_format():
    assert generator(png_with(parameters=WEBUI)) == READ
    assert generator(images.encoded(images.photo(), "GIF", comment=WEBUI.encode())) == READ
    for code, encoding in (*UTF16, (b"ASCII\0\0\0", "utf-8")):
        for form in ("JPEG", "WEBP", "AVIF"):
            comment = user_comment(code, WEBUI.encode(encoding))
            assert generator(with_exif(comment, form)) == READ, (code, encoding, form)


def test_comfyui_graphs_are_read_as_run_and_as_drawn():
    graph, drawn = json.dumps(GRAPH), json.dumps(DRAWN)
    assert generator(png_with(prompt=graph, workflow=drawn)) == RAN
    both = generator(png_with(prompt=json.dumps({"4": GRAPH["4"]}), parameters=WEBUI))
    models = {"tool": "ComfyUI", "models": RAN["models"], "nodes": ["CheckpointLoaderSimple"]}
    assert both == READ | models
    nodes = {"models": ["flux1-dev.safetensors"], "nodes": ["UNETLoader", "KSampler"]}
    assert generator(png_with(workflow=drawn)) == {"tool": "ComfyUI"} | nodes
    for data in (
        in_exif("WEBP", model=f"prompt:{graph}"),
        in_exif("WEBP", make=f"workflow:{drawn}"),
    ):
        found = said(data)
        assert (found.generator.tool, found.camera) == ("ComfyUI", None)


def test_graph_labels_have_any_case_and_blanks():
    graph, drawn = json.dumps(GRAPH), json.dumps(DRAWN)
    cases = [
        in_exif(form, make=prompt, description=f"Workflow:{drawn}")
        for prompt in (f"Prompt:{graph}", f"prompt: {graph}", f" PROMPT :\n{graph}")
        for form in ("JPEG", "WEBP", "PNG", "AVIF")
    ]
    tags = {"make": 'other_extension:{"a": 1}', "document": f"workflow:{drawn}"}
    for data in (*cases, in_exif("WEBP", model=f"prompt:{graph}", **tags), png_with(Prompt=graph)):
        found = said(data)
        assert (json.loads(found.row())["generator"], found.camera) == (RAN, None)
    assert generator(in_exif("WEBP", document=f"workflow:{drawn}"))["tool"] == "ComfyUI"


def test_graph_without_a_label_is_found():
    prompts = GRAPH, {"prompt": GRAPH, "workflow": DRAWN}, {"prompt": json.dumps(GRAPH)}
    for record in (*prompts, DRAWN, {"workflow": DRAWN}):
        text = json.dumps(record)
        for data in (in_comment(text.encode()), in_exif(make=text), png_with(parameters=text)):
            found = said(data)
            assert (found.generator.tool, found.camera) == ("ComfyUI", None)


def test_large_graph_is_read():
    note = {"class_type": "Note", "inputs": {"text": "w" * 200}}
    graph = json.dumps({str(n): note for n in range(100, 12_000)} | GRAPH)
    assert len(graph) > 3_000_000
    for data in (png_with(prompt=graph), png_with(parameters=graph)):
        found = generator(data)
        assert (found["prompt"], found["seed"], found["models"]) == ("a cat", 5, RAN["models"])


NOVELAI = {"steps": 28, "sampler": "k_euler", "seed": 9, "uc": "dog"}
INVOKEAI = {"app_version": "4.2", "positive_prompt": "a cat", "steps": 30, "scheduler": "euler",
            "model": {"name": "sdxl", "hash": "blake3:1"}}  # fmt: skip
INVOKEAI_2 = {"app_version": "2.3", "model_weights": "sd-1.5",
              "image": {"prompt": [{"prompt": "a cat"}], "steps": 50, "sampler": "k_lms", "seed": 3}}  # fmt: skip
SWARM = {"prompt": "a cat", "model": "flux", "steps": 8, "seed": 1, "swarm_version": "0.9"}
FOOOCUS = {"base_model": "juggernaut", "prompt": "a cat", "steps": 30, "seed": "77"}
FOOOCUS["version"] = "Fooocus v2.3"
MFLUX = {"mflux_version": "0.11.0", "model": "schnell", "base_model": None, "seed": 5, "steps": 4}
MFLUX["prompt"] = "a cat"
RUINED = {"Prompt": "a cat", "Negative": "dog", "steps": 30, "base_model_name": "jugger"}
RUINED["software"] = "RuinedFooocus"
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
        ({"parameters": json.dumps({"sui_image_params": SWARM})},
         {"tool": "SwarmUI", "version": "0.9", **CAT, "steps": 8, "seed": 1, "model": "flux"}),
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
def test_generator_is_known_by_the_structure_of_its_texts(texts, told):
    found = read_generator(texts, texts.get("Software", ""))
    assert json.loads(found.model_dump_json(exclude_defaults=True)) == told


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
    comment = text.encode()
    for data in (in_comment(comment), png_with(parameters=text), images.jpeg(comment=comment)):
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
def test_web_ui_parameters_are_attributed_to_their_version(setting, tool):
    assert generator(png_with(parameters=f"a cat\n{SETTINGS}, {setting}"))["tool"] == tool


@pytest.mark.parametrize(
    ("software", "tool"),
    [("Fooocus v2.5", "Fooocus"), ("Adobe Photoshop", "Stable Diffusion web UI")],
)
def test_web_ui_parameters_are_attributed_to_the_software(software, tool):
    assert generator(png_with(parameters=f"a cat\n{SETTINGS}", Software=software))["tool"] == tool


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "AVIF"])
def test_user_comment_is_read_in_every_encoding(form):
    text = f"ein rotes Fahrrad, 自行车\nNegative prompt: text\n{SETTINGS}"
    for code, read_bytes in (
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
        found = generator(with_exif(user_comment(code, read_bytes), form))
        assert found["prompt"] == "ein rotes Fahrrad, 自行车", (code, read_bytes[:20])
    without_code = generator(with_exif(user_comment(b"", json.dumps(MFLUX).encode()), form))
    assert without_code["tool"] == "mflux"


BLACK_FOREST = "FLUX (Black Forest Labs)"


@pytest.mark.parametrize(
    ("software", "make", "model", "tool"),
    [
        ("AI generated;txt2img;flux", "Black Forest Labs", "flux-schnell", BLACK_FOREST),
        ("ai  generated; img2img; FLUX", "Black Forest Labs", "x", BLACK_FOREST),
        ("AI generated;t2i;qwen", "Qwen", "qwen-image", "Qwen"),
        ("AI generated", "", "", "AI"),
        ("", "Black Forest Labs & others", "flux-dev", BLACK_FOREST),
        ("", "Stability AI", "", "Stability AI"),
        ("", "Midjourney", "7", "Midjourney"),
        ("", "Google", "Imagen 3", "Google"),
        ("", "Tencent", "hunyuan-dit", "Tencent"),
    ],
)
def test_maker_of_generators_is_not_a_camera(software, make, model, tool):
    tags = {"software": software, "make": make, "model": model}
    found = said(in_exif(**{name: text for name, text in tags.items() if text}))
    named = {"tool": tool} | ({"model": model} if model else {})
    assert json.loads(found.row())["generator"] == named
    assert (found.camera, found.ai_declared) == (None, True)


def test_known_generators_are_not_cameras():
    names = {
        name
        for key, entry in generator_index().generators.items()
        for name in (key, entry.title, *entry.aliases)
        if len(spelling_key(name)) > 4 and name.isascii()
    }
    assert len(names) > 100
    for name in names:
        for spelled in (name, name.upper(), name.replace("-", " ")):
            found = said(in_exif(model=spelled))
            assert found is None or (found.camera, found.generator) == (None, None), spelled


FIRMS = [
    "Adobe",
    "Tencent",
    "Alibaba",
    "ByteDance",
    "Kuaishou",
    "Runway",
    "Playground",
    "fal",
    "Firefly",
]


@pytest.mark.parametrize(
    ("make", "model"),
    [
        ("SIGMA", "SD15"),
        ("Google", "Pixel 9"),
        ("NIKON", "Z 6"),
        ("HUAWEI", "P30"),
        ("Camera: one", "two: {three"),
        ("[none]", "{"),
        *((make, "X1") for make in FIRMS),
        ("Qwenda", "Q1"),
        ("OpenAir", "O1"),
        ("Ideogramma", "I1"),
        ("HAWKEYE", "Firefly"),
        ("Leica", "GLIDE"),
        ("Apple", "Spade"),
    ],
)
def test_camera_with_a_similar_name_stays_a_camera(make, model):
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
        ("OpenAI", {"tool": "OpenAI"}),
        ("xAI Grok", {"tool": "xAI Grok"}),
        ("Google Imagen 4 Ultra", {"tool": "Google Imagen"}),
        ("Imagen 3", {"tool": "Imagen"}),
        ("gemini-2.5-flash-image", {"tool": "Gemini"}),
        ("Sora", {"tool": "Sora"}),
        ("Grok ", {"tool": "Grok"}),
        ("Sora no Photo", None),
        ("Sorax", None),
        ("My Sora 2", None),
        ("Imagen AI", None),
        ("Gemini Photos", None),
        ("Grok JPEG 2000", None),
        ("OpenAIR 2", None),
    ],
)
def test_camera_is_never_named_as_the_generator(software, told):
    found = said(in_exif(software=software, make="Canon", model="EOS R5"))
    assert (found.camera.make, found.ai_declared) == ("Canon", told is not None)
    assert json.loads(found.row()).get("generator") == told


def test_xmp_texts_name_generators():
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
        numbers = {"Seed": digits, "Steps": digits}
        found = generator(png_with(prompt="a cat", **numbers, **{"Stable Diffusion model": "sd"}))
        assert found == {"tool": "Easy Diffusion", **CAT, "model": "sd"}
    text = json.dumps({"use_stable_diffusion_model": "sd", "seed": 0}).replace("0", "9" * 3000)
    assert generator(png_with(parameters=text)) == {"tool": "Easy Diffusion", "model": "sd"}


@pytest.mark.parametrize("software", ["OpenAI", "Gemini", "Imagen", "Grok", "Sora"])
def test_software_names_a_generator_in_every_container(software):
    space = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    for data in (
        in_exif(software=software),
        png_with(Software=software),
        with_xmp(xmp(f'xmp:CreatorTool="{software}"'), "JPEG"),
        with_xmp(xmp(f'{space} tiff:Software="{software}"'), "WEBP"),
    ):
        assert generator(data) == {"tool": software}


SIGNATURE = "Signature: " + "Qk9+/a" * 16 + "=="
NUMBER = "2f1c77a0-8d53-4f6e-9a11-0c2b6f3d9e55"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_grok_signature_with_a_number_names_grok(form):
    assert generator(in_exif(form, description=SIGNATURE, artist=NUMBER)) == {"tool": "Grok"}


@pytest.mark.parametrize(
    "tags",
    [
        {"artist": NUMBER},
        {"description": SIGNATURE},
        {"description": SIGNATURE, "artist": "Jane Doe"},
        {"description": "Signature: Jane Doe", "artist": NUMBER},
        {"description": f"The contract. {SIGNATURE}", "artist": NUMBER},
    ],
)
def test_half_of_a_grok_signature_names_no_generator(tags):
    found = said(in_exif(make="Canon", **tags))
    assert (found.camera.make, found.generator, found.ai_declared) == ("Canon", None, False)


def aigc(level="1", **fields) -> dict:
    empty = dict.fromkeys(("ReservedCode1", "PropagateID", "ReservedCode2"), "")
    return {"Label": level, "ContentProducer": "00119111", "ContentPropagator": "", "ProduceID": "p"} | empty | fields  # fmt: skip


AIGC_SPACE = 'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"'
LABEL = json.dumps(aigc())
WRAPPED = json.dumps({"AIGC": aigc()})
QUOTED = LABEL.replace('"', "&quot;")


def test_aigc_label_is_read_in_every_form():
    cases = [
        with_xmp(packet, form)
        for packet in (
            xmp(AIGC_SPACE, f"<TC260:AIGC>{LABEL}</TC260:AIGC>"),
            xmp(f'{AIGC_SPACE} TC260:AIGC="{QUOTED}"'),
            xmp(AIGC_SPACE.replace("TC260=", "a="), f"<a:AIGC><![CDATA[{WRAPPED}]]></a:AIGC>"),
        )
        for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF")
    ]
    cases += [
        png_with(AIGC=LABEL),
        png_with(AIGC=WRAPPED),
        in_comment(WRAPPED.encode(), b"ASCII\0\0\0"),
        in_comment(WRAPPED.encode("utf-16-le"), b"UNICODE\0"),
        in_comment(json.dumps({"AIGC": LABEL}).encode()),
        in_comment(json.dumps({"AIGC": aigc(1)}).encode()),
        in_exif(description=WRAPPED),
        in_exif("WEBP", description=f"AIGC: {LABEL}"),
        images.jpeg(comment=WRAPPED.encode()),
    ]
    for data in cases:
        told = {"aigc_label": {"level": "generated", "producer": "00119111"}, "ai_declared": True}
        assert json.loads(said(data).row()) == told


@pytest.mark.parametrize(
    ("label", "level", "declared"),
    [("1", "generated", True), ("2", "possible", False), ("3", "suspected", False)],
)
def test_aigc_level_decides_the_declaration(label, level, declared):
    found = said(png_with(AIGC=json.dumps(aigc(label, ContentPropagator="Platform"))))
    assert (found.aigc_label.level, found.ai_declared) == (level, declared)
    assert found.lines() == {"aigc_label": f"{level}; producer 00119111; propagator Platform"}


@pytest.mark.parametrize(
    "texts",
    [
        {"aigc": "1"},
        {"aigc": "[1]"},
        {"aigc": json.dumps(aigc("0"))},
        {"aigc": json.dumps(aigc(True))},
        {"aigc": json.dumps(aigc(["1"]))},
        {"aigc": json.dumps({"AIGC": [aigc()]})},
        {"aigc": "{" * 100_000},
        {"parameters": LABEL},
        {"description": f"AIGC {LABEL}"},
        {"comment": json.dumps({"AIGC": "yes"})},
        {"title": WRAPPED},
    ],
)
def test_text_that_resembles_an_aigc_label_is_ignored(texts):
    assert read_aigc_label(texts) is None


def test_long_values_of_an_aigc_label_are_cut():
    hostile = aigc(ContentProducer="\u202e" + "x\n" * 10_000, ContentPropagator={"a": 1})
    label = said(png_with(AIGC=json.dumps(hostile))).aigc_label
    assert (len(label.producer), label.propagator) == (MAX_CHARACTERS - 1, None)
    assert label.producer.replace(" ", "").strip("x") == ""


WORDS = ["a", "Steps: 20, S", "\n", "Negative prompt:", "nodes", "links", "class_type"]
WORDS += list('{":,\\[]}')
NAMES = ["mflux_version", "Software", "Comment", "use_stable_diffusion_model", "Stable Diffusion model", "c", "version",
         "nodes", "links", "class_type", "inputs", "image", "prompt", "model", "base_model", "type", "steps", "sampler_name",
         "positive", "text", "widgets_values", "AIGC", "Label", "ContentProducer", "sui_image_params", "positive_prompt", "3"]  # fmt: skip
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
                            "use_stable_diffusion_model", "aisystemused", "credit", "artist", "aigc"])  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(KEYWORDS, TEXTS),
    st.sampled_from(["", "NovelAI", "Draw Things", "AI generated;"]),
    TEXTS,
)
def test_any_texts_are_a_generator_or_none(texts, software, name):
    read_aigc_label(merge_texts(texts))
    told = read_generator(texts, software, name, name)
    if told is not None:
        json.loads(told.model_dump_json(), parse_constant=lambda name: pytest.fail(name))
