"""Read the node graphs that ComfyUI writes into the images it generates.

A graph contains the parameters of the generator, such as model, prompt, and seed. They are returned
as fields of a `Generator`.

`read_prompt` reads a graph in the form in which it was executed (`prompt`). `read_workflow` reads a
graph in the form of the editor (`workflow`). `read_graph` reads a graph in either form.
`parse_json_object` parses JSON of unknown content.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_NODES = 20_000
_MAX_BLANKS = 1000  # Blanks before an object.
_MODELS = ("ckpt_name", "unet_name")


def read_graph(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Generator` from a ComfyUI graph, which describes how an image was made.

    The record may be the graph itself: as it was executed, or as the editor stores it. The record may
    also contain one or both forms under the keys `prompt` and `workflow`. Without a graph, the result
    is empty.
    """
    return (
        read_prompt(record)
        or read_workflow(record)
        or read_prompt(parse_json_object(record.get("prompt")))
        or read_workflow(parse_json_object(record.get("workflow")))
    )


def parse_json_object(value: Any) -> dict[str, Any]:
    """Parse a text that is a JSON object. Return a dict unchanged.

    The result is empty for any other value, such as invalid JSON or a list.
    """
    if isinstance(value, str) and value[:_MAX_BLANKS].lstrip()[:1] == "{":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # Nested deeper than the interpreter's stack.
            return {}
    return value if isinstance(value, dict) else {}


def read_prompt(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters in a ComfyUI graph that was executed, such as prompt and seed.

    The keys are fields of `statement.Generator`. The graph has the form {id: {class_type, inputs}}.
    The result is empty if `graph` has another form.
    """
    nodes = dict(_iter_nodes(graph))
    if not nodes:
        return {}
    sampling = next(
        (inputs for _, inputs in nodes.values() if "steps" in inputs and "sampler_name" in inputs),
        {},
    )
    return {
        "prompt": _read_linked_text(nodes, sampling.get("positive")),
        "negative_prompt": _read_linked_text(nodes, sampling.get("negative")),
        "steps": sampling.get("steps"),
        "sampler": sampling.get("sampler_name"),
        "seed": sampling.get("seed"),
        "models": [
            inputs[name] for _, inputs in nodes.values() for name in _MODELS if name in inputs
        ],
        "nodes": [kind for kind, _ in nodes.values()],
    }


def read_workflow(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models and node classes in a graph that ComfyUI's editor saved.

    The keys are `models` and `nodes`, fields of `statement.Generator`. The graph has the form
    {nodes: [{type, widgets_values}]}. The result is empty if another program may have written it.
    """
    nodes_value = workflow.get("nodes")
    nodes = (
        [node for node in nodes_value[:MAX_NODES] if isinstance(node, dict)]
        if isinstance(nodes_value, list)
        else []
    )
    kinds = [kind for node in nodes if isinstance(kind := node.get("type"), str)]
    is_own = "last_node_id" in workflow or any("widgets_values" in node for node in nodes)
    if not kinds or "links" not in workflow or not is_own:
        return {}
    models = [
        node["widgets_values"][0]
        for node in nodes
        if str(node.get("type")).startswith(("CheckpointLoader", "UNETLoader"))
        and isinstance(node.get("widgets_values"), list)
        and node["widgets_values"]
    ]
    return {"models": models, "nodes": kinds}


def _iter_nodes(graph: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Mapping[str, Any]]]]:
    for name, node in list(graph.items())[:MAX_NODES]:
        if (
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        ):
            yield name, (node["class_type"], node["inputs"])


def _read_linked_text(nodes: Mapping[str, tuple[str, Mapping[str, Any]]], link: Any) -> str | None:
    """Return the text of the node that an input is linked to: [id, output]."""
    if not (isinstance(link, list) and link and isinstance(link[0], str) and link[0] in nodes):
        return None
    text = nodes[link[0]][1].get("text")
    return text if isinstance(text, str) else None
