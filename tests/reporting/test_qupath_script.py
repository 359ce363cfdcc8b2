"""The Groovy script of docs/slides.md reads a folder of maps into a project of stand-ins for QuPath's classes.

The stand-ins have the signatures of QuPath 0.5.1 that the script calls, and no others. They read files in an encoding
other than UTF-8, as QuPath 0.4 did on Windows. Needs Java and Groovy 2.4 or newer; skipped where absent.
"""

import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pfiles.paths import ROOT
from pfiles.reporting import maps

STAND_INS = {
    "qupath/lib/io/PathIO.groovy": """
        package qupath.lib.io
        import groovy.json.JsonSlurper
        class PathObject {
            Map feature
            PathClass getPathClass() { new PathClass(feature.properties.classification) }
        }
        @groovy.transform.EqualsAndHashCode @groovy.transform.ToString(includePackage = false)
        class PathClass { String name; List color }
        class PathIO {
            static List<PathObject> readObjects(File file) {
                new JsonSlurper().parse(file, "ISO-8859-1").features.collect { new PathObject(feature: it) }
            }
        }""",
    "qupath/lib/scripting/QP.groovy": """
        package qupath.lib.scripting
        import groovy.json.*
        import qupath.lib.io.*
        class Hierarchy {
            List added = []
            boolean addObjects(Collection<? extends PathObject> objects) { added.addAll(objects) }
        }
        class Server implements AutoCloseable { boolean open = true; void close() { open = false } }
        class ImageData {
            private Hierarchy hierarchy = new Hierarchy()
            private Server server = new Server()
            Hierarchy getHierarchy() { hierarchy }
            Server getServer() { server }
        }
        class Entry {
            String imageName
            ImageData saved
            private ImageData latest
            ImageData readImageData() { latest = new ImageData() }
            void saveImageData(ImageData imageData) { saved = imageData }
        }
        class Project {
            List<Entry> entries
            private List<PathClass> classes = [new PathClass(name: "Tumor", color: [200, 0, 0])]
            List<Entry> getImageList() { entries }
            List<PathClass> getPathClasses() { classes.asImmutable() }
            boolean setPathClasses(Collection<? extends PathClass> changed) { classes = changed as List }
            void syncChanges() {
                def images = entries.collectEntries {
                    [it.imageName, it.saved?.hierarchy?.added*.feature*.properties*.measurements*.Tiles]
                }
                def told = [images: images, open: entries.count { it.latest?.server?.open },
                            classes: classes.collect { [it.name, it.color] }]
                new File("synced.json").setText(JsonOutput.toJson(told), "UTF-8")
            }
        }
        class QP {
            static Project project = new Project(
                entries: new JsonSlurper().parse(new File("images.json"), "UTF-8").collect { new Entry(imageName: it) })
            static Project getProject() { project }
        }""",
}
IMAGES = {  # names of images in QuPath and of their slides here
    "a b%20&c.tiff": "a b%20&c",
    "x.y.z.svs": "x.y.z",
    "field.ome.tiff": "field",
    "quo\"te's.mrxs": "quo\"te's",
    "スライド.ndpi": "スライド",
    unicodedata.normalize("NFD", "Präparat.svs"): unicodedata.normalize("NFC", "Präparat"),
    "renamed by hand": "renamed by hand",
    "never mapped.svs": None,
}


def groovy() -> tuple[str, dict[str, str]]:
    """The command and its environment; Debian's Groovy asks for JAVA_HOME."""
    command, java = shutil.which("groovy"), shutil.which("java")
    if command is None or java is None:
        pytest.skip("needs Java and Groovy (apt-get install groovy), to run the script for QuPath")
    return command, {"JAVA_HOME": str(Path(java).resolve().parents[1]), "LC_ALL": "C.UTF-8", **os.environ}


@pytest.mark.slow
def test_the_script_reads_all_maps_with_classes_and_colours(tmp_path):
    command, environment = groovy()
    slides = [slide for slide in IMAGES.values() if slide]
    rows = [(slide, 64 * x, 64 * y, 64, 1.0) for slide in slides for y in range(3) for x in range(3)]
    positions = np.rec.fromrecords(rows, names="slide,x,y,side,mpp")
    cluster_ids = np.tile([0, 0, 0, 1, 1, 1, 0, 0, 1], len(slides))  # two regions of each cluster, but cluster 2 joins
    tiles = maps.ClusteredTiles(positions, cluster_ids, np.ones(len(rows)))
    images = torch.full((len(rows), 3, 8, 8), 200, dtype=torch.uint8)
    maps.write_maps(tmp_path / "maps of today", tiles, images, 2, names={1: "Drüsen"})
    plt.close("all")
    for name, text in STAND_INS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "images.json").write_text(json.dumps([*IMAGES]))
    (script,) = re.findall(r"```groovy\n(.*?)```", (ROOT / "docs" / "slides.md").read_text(), re.DOTALL)
    script = script.replace("/path/to/maps", str(tmp_path / "maps of today"))
    (tmp_path / "read_maps.groovy").write_text("import static qupath.lib.scripting.QP.*\n" + script)
    ran = subprocess.run(
        [command, "-cp", ".", "read_maps.groovy"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    project = json.loads((tmp_path / "synced.json").read_text())
    assert {name: sorted(counts or []) for name, counts in project["images"].items()} == {
        name: [2, 3, 4] if slide else [] for name, slide in IMAGES.items()
    }
    assert project["classes"][0] == ["Tumor", [200, 0, 0]]
    assert dict(project["classes"][1:]) == {
        "1 Drüsen": [round(255 * value) for value in maps.to_rgb(maps.colour(0))],
        "Cluster 2": [round(255 * value) for value in maps.to_rgb(maps.colour(1))],
    }
    assert project["open"] == 0
    assert "no map of never mapped.svs" in ran.stdout
