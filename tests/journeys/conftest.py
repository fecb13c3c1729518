"""The wheel, a person of a test's own, and an archive whose truth is known."""

import csv
import shutil

import pytest

from tests.journeys.person import Person
from tests.make.wheel import WheelEnvironment


@pytest.fixture(scope="session")
def wheel():
    """The wheel of this tree beside the packages that the tests have."""
    return WheelEnvironment.beside_our_packages()


@pytest.fixture
def person(wheel, tmp_path):
    return Person.with_nothing(wheel, tmp_path)


@pytest.fixture(scope="session")
def sample(wheel, tmp_path_factory):
    """A folder with `archive` (86 files, 3 of them broken or not an image) and
    `archive-labels.csv`, as the tutorials make them.
    """
    maker = Person.with_nothing(wheel, tmp_path_factory.mktemp("sample"))
    told = maker.types("docs/tutorials/archive-overnight.md", "touchstone demo --archive-only")
    assert "86 files, 3 of them broken or not an image" in told.stdout
    return maker.folder / "sample"


@pytest.fixture(scope="session")
def truth(sample):
    """{path below the archive: (label, generator)} of its 83 pictures."""
    with (sample / "archive-labels.csv").open(newline="") as file:
        return {
            row["uri"].removeprefix("archive/"): (row["label"], row["generator"])
            for row in csv.DictReader(file)
        }


@pytest.fixture
def with_sample(person, sample):
    """The person, who has the archive and its labels in the folder."""
    shutil.copytree(sample, person.folder, dirs_exist_ok=True)
    return person
