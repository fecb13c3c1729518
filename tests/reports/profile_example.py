"""A profile's part of a summary, with figures that look like an archive's."""

from typing import Any

LONG = "a weathered fisherman mending nets on a pier at dawn, volumetric fog, 35mm film grain, " * 6


def told(
    image_id: int,
    name: str | None,
    family: str | None,
    ranking: list[str],
    prompt: str | None,
    **changes: Any,
) -> dict[str, Any]:
    return {
        "image_id": image_id, "uri": f"s3://picture-desk/harbour/incoming/2029-01/IMG_{4200 + 37 * (image_id - 1000)}.jpg", "member": None,
        "score": 9.0 - 0.01 * image_id, "predicted_generator": name, "generator_family": family, "generator_probability": 0.83,
        "generator_confidence": 4.2, "generator_ranking": ranking, "predicted_prompt": prompt, "prompt_likelihood": -1.2, **changes,
    }  # fmt: skip


def example_profile(**changes: Any) -> dict[str, Any]:
    return {
        "flagged": 150,
        "identified": True,
        "generators": [
            {"family": "sdxl_1.0", "generator": "sdxl", "flagged": 41},
            {"family": "flux.1_d", "generator": "flux.1-dev", "flagged": 30},
            {"family": "sdxl_1.0", "generator": "sdxl_1.0/juggernaut-xl", "flagged": 12},
            {"family": "midjourney", "generator": "midjourney-6", "flagged": 22},
            {"family": "gaudi", "generator": "gaudi", "flagged": 3},
        ],
        "unlike": 38,
        "silent": 4,
        "describes": True,
        "described": 146,
        "told": [
            told(
                1001,
                "sdxl",
                "sdxl_1.0",
                ["sdxl", "flux.1-dev"],
                "harbour at sunrise, golden light, gulls",
            ),
            told(1002, None, None, ["flux.1-dev", "sdxl"], LONG),
            told(1003, "sdxl_1.0/juggernaut-xl", "sdxl_1.0", ["sdxl_1.0/juggernaut-xl"], None),
            told(
                1004,
                None,
                None,
                [],
                "a lighthouse",
                generator_probability=None,
                generator_ranking=None,
            ),
        ],
        **changes,
    }
