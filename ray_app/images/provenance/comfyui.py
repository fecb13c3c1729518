"""Graphs of ComfyUI → the fields of a `Generator`: as they ran (`read_prompt`), as they were drawn
(`read_workflow`), or either (`read_graph`); `json_object` parses JSON of unknown content.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MOST_NODES = 20_000
_BLANKS = 1000  # looked at before an object
_MODELS = ("ckpt_name", "unet_name")


def read_graph(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Generator in a graph of either kind, or in a record that holds one or both;
    empty if there is none.
    """
    return (
        read_prompt(record)
        or read_workflow(record)
        or read_prompt(json_object(record.get("prompt")))
        or read_workflow(json_object(record.get("workflow")))
    )


def json_object(value: Any) -> dict[str, Any]:
    """A JSON object, parsed or as text; empty for anything else."""
    if isinstance(value, str) and value[:_BLANKS].lstrip()[:1] == "{":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # nested deeper than the interpreter's stack
            return {}
    return value if isinstance(value, dict) else {}


def read_prompt(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Generator in {id: {class_type, inputs}}; empty where this is no such graph."""
    nodes = dict(_nodes(graph))
    if not nodes:
        return {}
    sampling = next(
        (inputs for _, inputs in nodes.values() if "steps" in inputs and "sampler_name" in inputs),
        {},
    )
    return {
        "prompt": _words(nodes, sampling.get("positive")),
        "negative_prompt": _words(nodes, sampling.get("negative")),
        "steps": sampling.get("steps"),
        "sampler": sampling.get("sampler_name"),
        "seed": sampling.get("seed"),
        "models": [
            inputs[name] for _, inputs in nodes.values() for name in _MODELS if name in inputs
        ],
        "nodes": [kind for kind, _ in nodes.values()],
    }


def read_workflow(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Generator in {nodes: [{type, widgets_values}]}; empty if other
    programs may have written the graph.
    """
    listed = drawn.get("nodes")
    nodes = (
        [node for node in listed[:MOST_NODES] if isinstance(node, dict)]
        if isinstance(listed, list)
        else []
    )
    kinds = [kind for node in nodes if isinstance(kind := node.get("type"), str)]
    is_own = "last_node_id" in drawn or any("widgets_values" in node for node in nodes)
    if not kinds or "links" not in drawn or not is_own:
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
        if (
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        ):
            yield name, (node["class_type"], node["inputs"])


def _words(nodes: Mapping[str, tuple[str, Mapping[str, Any]]], link: Any) -> str | None:
    """The text of the node that an input is linked to: [id, output]."""
    if not (isinstance(link, list) and link and isinstance(link[0], str) and link[0] in nodes):
        return None
    text = nodes[link[0]][1].get("text")
    return text if isinstance(text, str) else None
