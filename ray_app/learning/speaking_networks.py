"""From a recipe's `describe` to the network that learns to say prompts, and its tokenizer. Knows no data, no loss and no process."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ray_app.detectors.weights import resolve_part
from ray_app.errors import ConfigError
from ray_app.learning.describe import Describe
from ray_app.learning.networks import seeded
from ray_app.profiling.cards import DescriberCard, load_describer
from ray_app.profiling.describing.captioner import MODELS, build_captioner
from ray_app.profiling.describing.prefix import PrefixNet
from ray_app.profiling.describing.speaking import load_body, read_weights
from ray_app.profiling.describing.words import Words, own_words, train_words, words_of_card

# Where the config of each captioner keeps what the tokenizer decides.
_WORDS_AT: Mapping[str, tuple[str, ...]] = {"git": (), "blip": ("text_config",), "vision-encoder-decoder": ("decoder",)}


class Plan(NamedTuple):
    """What a describer will be: the finished `architecture` of its card, tokens of a prefix, its words, and the card it starts from."""

    architecture: dict[str, Any]
    prefix: int
    words: Words
    start: DescriberCard | None = None


def starting_card(recipe: str, wanted: Describe) -> DescriberCard | None:
    """The card that a recipe begins with. Raises ConfigError where it is of another tier."""
    if wanted.start is None:
        return None
    card = load_describer(wanted.start)
    if card.tier != wanted.tier:
        raise ConfigError(f"{recipe}: describe.start: {card.name} is of the tier {card.tier}, not {wanted.tier}")
    return card


def make_plan(recipe: str, wanted: Describe, *, width: int | None, prompts: Sequence[str] = (), tokenizer: str | None = None) -> Plan:
    """The plan of a recipe. `width`: of an embedding, for prefix; `tokenizer`: JSON of one that was trained before, else it is trained on
    `prompts`. Raises ConfigError, DetectorError.
    """
    import tokenizers

    if (card := starting_card(recipe, wanted)) is not None:
        if card.tier == "prefix" and card.architecture.get("width") != width:
            raise ConfigError(f"{recipe}: describe.start: {card.name} reads other embeddings than the recipe's detector makes")
        words = words_of_card(card, resolve_part(card.parts[0]))
        return Plan(dict(card.architecture), card.prefix, words, card)
    words = train_words(prompts, wanted.vocabulary) if tokenizer is None else own_words(tokenizers.Tokenizer.from_str(tokenizer))
    return Plan(_completed(recipe, wanted, words, width), wanted.prefix, words)


def _completed(recipe: str, wanted: Describe, words: Words, width: int | None) -> dict[str, Any]:
    """The recipe's architecture with what the tokenizer and the embedding decide."""
    told: dict[str, Any] = dict(wanted.architecture)
    config = dict(told.get("config", {}))
    longest = wanted.most_tokens + 1 + (wanted.prefix if wanted.tier == "prefix" else 0)
    decided = {
        "vocab_size": words.tokenizer.get_vocab_size(),
        "bos_token_id": words.begin,
        "eos_token_id": words.end,
        "pad_token_id": words.pad,
    }
    if wanted.tier == "prefix":
        return {"width": width, "config": {"n_positions": longest, **config, **decided}}
    if (model := str(told.get("model"))) not in MODELS:
        raise ConfigError(f"{recipe}: describe.architecture.model {model}: there are {', '.join(MODELS)}")
    if model == "blip":
        decided["sep_token_id"] = words.end
    at = _WORDS_AT[model]
    positions = {"n_positions": longest} if model == "vision-encoder-decoder" else {"max_position_embeddings": longest}
    if not at:
        config = {**positions, **config, **decided}
    else:
        more = {"is_decoder": True, "add_cross_attention": True} if model == "vision-encoder-decoder" else {}
        config[at[0]] = {**positions, **more, **config.get(at[0], {}), **decided}
    return {**told, "config": config}


def speaking_network(name: str, wanted: Describe, plan: Plan, seed: int) -> Any:
    """The network as training begins, on the CPU, drawn from the seed or with the weights of what it starts from."""
    with seeded(seed):
        if wanted.tier == "prefix":
            network: Any = PrefixNet(plan.architecture["width"], plan.prefix, plan.architecture["config"])
        else:
            network = build_captioner(name, plan.architecture)
    if plan.start is not None:
        path = resolve_part(plan.start.parts[0])
        load_body(network, read_weights(plan.start, path), f"{plan.start.name}: {path}")
    assert isinstance(network, nn.Module)
    return network.requires_grad_(True).train()


def describer_facts(wanted: Describe, plan: Plan, sees: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the card of what was trained; `sees`: `preprocessing`, or `detector` and `embedding`."""
    search = {"beams": wanted.beams, "no_repeat": wanted.no_repeat, "most_tokens": wanted.most_tokens}
    return {"tier": wanted.tier, "architecture": plan.architecture, "prefix": plan.prefix, **sees, **search}


def tokenizer_json(plan: Plan) -> str:
    """The tokenizer as the header of the weights keeps it."""
    return str(plan.words.tokenizer.to_str())
