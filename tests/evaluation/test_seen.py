import pytest

from ray_app.detectors import list_cards, load_card
from ray_app.evaluation.seen import is_named, seen, seen_by_any


@pytest.mark.parametrize(
    ("detector", "generator", "word"),
    [
        ("cnndetection", "progan", "in-training"),
        ("cnndetection", "ProGAN/airplane", "in-training"),
        ("cnndetection", "stylegan2", "unseen"),
        ("cnndetection:native", "stylegan2", "unseen"),
        ("unifd", "PGGAN", "in-training"),
        ("npr", "flux.1-dev", "unseen"),
        ("corvi2023", "latent_diffusion", "in-training"),
        ("corvi2023", "sd-1.5", "unseen"),
        ("maskclip", "sd15", "in-training"),
        ("maskclip", "sd_1.5", "in-training"),
        ("maskclip", "Stable Diffusion v1.5", "in-training"),
        ("maskclip", "flux", "unseen"),
        ("clip-d-10k-plus", "ldm_200", "in-training"),
        ("clip-d-10k-plus", "flux", "unknown"),
        ("openfake-swinv2-small", "sd-3.5", "unknown"),
        ("community-forensics-vits384", "flux", "unknown"),
        ("siglip2-open-deepfake", "open-deepfake-preview", "unknown"),
        ("touchstone-tiny", "ae-nearest4", "in-training"),
        ("touchstone-tiny", "ae-shuffle8", "unseen"),
        ("cnndetection", "real", "unknown"),
        ("cnndetection", "real:lsun", "unknown"),
    ],
)
def test_what_the_cards_tell(detector, generator, word):
    assert seen(load_card(detector), generator) == word


def test_a_complete_list_names_something():
    assert all(card.training_data.generators for card in list_cards() if card.training_data.complete)


def test_names_are_compared_without_case_and_separators():
    assert is_named("SD 3.5-Large", "sd_3.5*")
    assert not is_named("sd2", "sd15*")
    assert not is_named("stylegan", "progan*")


def test_the_demonstration_was_trained_on_its_own_split():
    from ray_app.simulation.dataset import SPLITS

    assert load_card("touchstone-tiny").training_data.generators == tuple(SPLITS["train"].decoders)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["unseen", "in-training", "unknown"], "in-training"),
        (["unseen", "unseen"], "unseen"),
        (["unseen", "unknown"], "unknown"),
        ([], "unknown"),
    ],
)
def test_one_member_that_saw_it_decides(words, word):
    assert seen_by_any(words) == word
