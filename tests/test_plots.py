"""The page of `dvc plots` is self-contained: it needs no network."""

import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.conftest import ROOT
from tests.helpers.browser import draw

PLOTS = ROOT / ".dvc/plots"


def test_the_curves_of_a_run_are_drawn_without_a_network(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(PLOTS, project / ".dvc/plots")
    for name in (".dvc/config", "dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, project / name)
    reports = project / "reports"
    reports.mkdir()
    (reports / "history.csv").write_text(
        "epoch,learning_rate,train_loss,val_loss,bleu_4,cider\n"
        "1,0.002,5.1,3.6,8,18\n2,0.001,4.0,3.2,12.5,28\n"
    )
    (reports / "scst.csv").write_text("epoch,reward,cross_entropy,bleu_4,cider\n1,49,2.5,13,31\n")
    (reports / "lengths.csv").write_text("words,captions,references\n8,60,40\n9,40,60\n")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "plots", "show", "--out", str(tmp_path / "page")],
        cwd=project,
        capture_output=True,
        check=True,
    )
    charts = draw(tmp_path / "page/index.html", tmp_path / "plots.png")
    assert {chart.title for chart in charts} >= {"loss by epoch", "caption length"}
    (loss,) = (chart for chart in charts if chart.title == "loss by epoch")
    assert loss.curves == 2
    assert loss.axes == ("epoch", "cross-entropy (nats per token; of train with label smoothing)")


def test_the_page_is_the_template_with_the_scripts_that_it_names() -> None:
    """As .dvc/plots/build-page writes it: no script was edited by hand."""
    page = (PLOTS / "page.html").read_text(encoding="utf-8")
    block = re.compile(
        r"<!--\n(\S+) \S+, sha256 of the script: (\w+)\."
        r".*?(Copyright.*?)-->\n<script>(.*?)</script>",
        re.DOTALL,
    )
    scripts = block.findall(page)
    assert [name for name, *_ in scripts] == ["vega", "vega-lite", "vega-embed"]
    for name, digest, licence, code in scripts:
        assert sha256(code.encode()).hexdigest() == digest, name
        assert "Redistribution and use in source and binary forms" in licence
    rest = "\n".join(block.sub("", page).split())
    template = (PLOTS / "page.template.html").read_text(encoding="utf-8")
    assert rest == "\n".join(template.replace("{vega}", "").split())
