"""What OpenVINO compiled is kept for the next start, whole or not at all."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cpu_engine
import pytest
from cpu_engine import compiled
from cpu_engine.compiled import compile_graph

from sidecar.engines import EngineInfo

OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}


@pytest.fixture
def graph(engines: Mapping[str, EngineInfo], tmp_path: Path) -> Path:
    engine = Path(shutil.copytree(engines["llama"].path, tmp_path / "engine"))
    return engine / "model.xml"


def blobs(folder: Path) -> dict[str, int]:
    """File -> time of its last change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.blob")
    }


def test_the_second_start_loads_what_the_first_kept(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    compile_graph(graph, OPTIONS, folder)
    first = blobs(folder)
    assert len(first) == 1
    again = compile_graph(graph, OPTIONS, folder)
    assert again.get_property("LOADED_FROM_CACHE")
    assert blobs(folder) == first


def test_another_engine_in_the_same_place_replaces_it(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    compile_graph(graph, OPTIONS, folder)
    first = blobs(folder)
    graph.touch()
    assert not compile_graph(graph, OPTIONS, folder).get_property("LOADED_FROM_CACHE")
    second = blobs(folder)
    assert len(second) == 1
    assert second.keys() != first.keys()


def test_what_a_killed_start_left_is_not_used(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    compile_graph(graph, OPTIONS, folder)
    (complete,) = folder.iterdir()
    complete.rename(folder / "new-killed")
    assert not compile_graph(graph, OPTIONS, folder).get_property("LOADED_FROM_CACHE")


def test_what_another_start_takes_away_meanwhile_keeps_none_from_starting(
    graph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    # As a folder that is listed, and then gone.
    (folder / "new-gone").symlink_to("nowhere")
    compile_graph(graph, OPTIONS, folder)
    assert compile_graph(graph, OPTIONS, folder).get_property("LOADED_FROM_CACHE")


def test_what_another_start_has_kept_meanwhile_stays(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    first: list[dict[str, int]] = []
    put_in_place = compiled._put_in_place

    def overtaken(new: Path, kept: Path) -> None:
        if not first:
            first.append({})
            compile_graph(graph, OPTIONS, folder)
            first[0] = {
                name: changed for name, changed in blobs(folder).items() if name[:4] != "new-"
            }
        put_in_place(new, kept)

    monkeypatch.setattr(compiled, "_put_in_place", overtaken)
    compile_graph(graph, OPTIONS, folder)

    assert len(first[0]) == 1
    assert blobs(folder) == first[0]


def test_a_folder_that_cannot_be_made_is_done_without(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiled = compile_graph(graph, OPTIONS, tmp_path / "file" / "kept")
    assert not compiled.get_property("LOADED_FROM_CACHE")


def test_on_a_full_disk_nothing_is_kept(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    program = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from cpu_engine.compiled import compile_graph\n"
        # Stands in for a full disk: writing beyond it is an error.
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"compile_graph(Path(sys.argv[2]), {OPTIONS!r}, Path(sys.argv[3]))\n"
    )
    package = str(Path(cpu_engine.__file__).parents[1])
    command = [sys.executable, "-c", program, package, str(graph), str(folder)]
    subprocess.run(command, check=True)
    assert list(folder.iterdir()) == []


def test_nothing_is_kept_unless_asked(graph: Path) -> None:
    before = sorted(path.name for path in graph.parent.iterdir())
    compile_graph(graph, OPTIONS, None)
    assert sorted(path.name for path in graph.parent.iterdir()) == before
