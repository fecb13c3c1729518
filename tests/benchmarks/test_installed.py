from benchmarks.installed import installed


def test_packages_weigh_what_they_say_they_installed_largest_first(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, size in (("small", 5_000), ("large", 50_000)):
        (site / f"{name}-1.dist-info").mkdir(parents=True)
        (site / f"{name}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (site / f"{name}-1.dist-info" / "RECORD").write_text(f"{name}.py,,\ngone.py,,\n")
        (site / f"{name}.py").write_bytes(bytes(range(250)) * (size // 250))
    sizes = installed(tmp_path)
    assert list(sizes) == ["large", "small"]
    assert 50_000 <= sizes["large"] < 100_000
