"""Cards of ensembles that tests serve."""


def write_stricter(folder, name="stricter", **changes):
    """Write the ensemble `tiny` with another threshold as a card. Returns its path."""
    lines = [
        f"name: {name}",
        "title: Stricter",
        "members: [{detector: touchstone-tiny}]",
        "thresholds: {real_below: 0, fake_above: 3.0}",
    ]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items())]))
    return str(path)
