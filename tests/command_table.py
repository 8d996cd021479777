"""How each printed command is tested: see `test_commands.py`, which compares this table with what is printed."""

from __future__ import annotations

from dataclasses import dataclass, field

SMALL = {"--profile s1s2 ": "--profile s1s2-smoke ", "DATA": "data/ombria"}
OURS = {"path/to/data": "data/ombria", "--profile s1s2 ": "--profile s1s2-smoke "}
SEN12MS = {"path/to/SEN12MS": "build/sen12ms"}
ONE = " --pretraining.max-steps 1 --training.max-steps 1"
FEW = "".join(f" --{part}.batch-size 2 --{part}.accumulation-steps 1" for part in ("training", "pretraining"))
FEW += " --evaluation.crop-size 96 --evaluation.calibration-pairs 1"
CPU = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


@dataclass(frozen=True)
class Step:
    """One printed command of a sequence.

    Attributes:
        put: what stands in the command as it is run, by what is printed; each must occur in it.
        add: options at its end.
        makes: what it leaves in the folder, as patterns.
        says: words that it prints.
    """

    printed: str
    put: dict[str, str] = field(default_factory=dict)
    add: str = ""
    makes: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


SEQUENCES: dict[str, tuple[Step, ...]] = {
    "two images": (
        Step("sarmatch demo", makes=("demo.png",), says=("within 3 px of the known shift",)),
        Step("sarmatch match sar.tif optical.tif", makes=("matches.geojson",)),
        Step("sarmatch match sar.tif optical.tif -o matches.geojson", {".geojson": ".gpkg"}, "", ("matches.gpkg",)),
        Step("sarmatch match --coverage 0.95", {"match --": "match sar.tif optical.tif -o m.csv --"}, "", ("m.csv",)),
        Step('matcher = sarmatch.load_matcher("s1s2")', {'"matches.geojson"': '"m.parquet"'}, "", ("m.parquet",)),
        Step(
            "sarmatch register sar.tif optical.tif -o registered.tif --report report.html",
            makes=("registered.tif", "report.html"),
        ),
        Step(
            "sarmatch register sar.tif optical.tif -o registered.tif --model affine --report report.html",
            makes=("registered.tif", "report.html"),
        ),
        Step("sarmatch batch pairs.csv", makes=("outcomes.csv", "first.tif"), says=("1 of 1 pairs registered",)),
        Step(
            "sarmatch batch pairs.csv --workers 4 -o outcomes.csv",
            {"--workers 4": "--workers 1", "outcomes.csv": "again.csv"},
            makes=("again.csv",),
        ),
    ),
    "a network of one's own": (
        Step("sarmatch data get ombria", makes=("data/ombria/2021/ALBANIA/Sentinel1/BEFORE/*.png",)),
        Step("sarmatch data get NAME --to PATH", {"NAME": "ombria", "PATH": "data/ombria"}),
        Step("sarmatch data check PATH", {"PATH": "data/ombria"}, says=("ombria, 32 pairs", "no problems")),
        Step("sarmatch data get optical-sar", makes=("data/optical-sar/dataset/sar/003.png",)),
        Step(
            "sarmatch train --profile s1s2 --data path/to/data",
            OURS,
            makes=("runs/s1s2-smoke/matcher-*/confidence.json", "runs/s1s2-smoke/pretraining-*/model.safetensors"),
            says=("trained matcher-", "confidence fitted on"),
        ),
        # After four steps too few matches agree, and the pair is refused.
        Step("sarmatch match sar.tif optical.tif --model RUN", add="--force", makes=("matches.geojson",)),
        Step("sarmatch train --profile s1s2 --data DATA", SMALL, says=("loaded matcher-",)),
        Step(
            "python -m companion networks --data DATA --minutes 10",
            {"DATA": "data/ombria"},
            "--profiles s1s2-smoke",
            ("build/networks/s1s2-smoke/model.safetensors",),
        ),
        Step(
            "python -m companion publish ../build/networks/s1s2-gpu --data DATA",
            {"../build/networks/s1s2-gpu": "build/networks/s1s2-smoke", "DATA": "data/ombria"},
            "--runs elsewhere --weights .",
            ("s1s2-smoke.safetensors", "s1s2-smoke.md", "book/results/s1s2-smoke/network.csv"),
            ("deform",),
        ),
        Step(
            "python -m companion book --profile s1s2 --data DATA --chapters cost",
            SMALL | {"cost": "data"},
            "--no-site",
            ("build/s1s2-smoke/book/data.ipynb",),
        ),
        Step("sarmatch train --profile s1s2 --data DATA --seed 1", SMALL, says=("trained matcher-",)),
        Step(
            "sarmatch train --profile sen12ms --data path/to/SEN12MS --data.split patch --name paper-split",
            {"sen12ms --data path/to/SEN12MS": "s1s2-smoke --data data/ombria"},
            makes=("runs/s1s2-smoke/paper-split-*/confidence.json",),
            says=("data.split: scene -> patch",),
        ),
    ),
    "the book on OMBRIA": (
        Step(
            "make book PROFILE=s1s2 DATA=data/ombria",
            {"PROFILE=s1s2": "PROFILE=s1s2-smoke"},
            makes=("build/s1s2-smoke/book/_build/html/index.html", "build/s1s2-smoke/book/results/s1s2-smoke/*.csv"),
        ),
        Step(
            "python -m companion study ablation --profile s1s2 --data path/to/data",
            OURS,
            says=("aggregated over neighbours",),
        ),
        Step("python -m companion study ablation --profile s1s2 --data DATA", SMALL, says=("each cell by itself",)),
        Step("python -m companion study data --profile s1s2 --data DATA", SMALL, says=("50% pretrained",)),
        Step("python -m companion study settings --profile s1s2 --data DATA", SMALL, says=("batch norm",)),
        Step(
            "python -m companion compare --profile demo",
            {"demo": "s1s2-smoke --data data/ombria"},
            says=("trained at equal budget", "images registered"),
        ),
    ),
    "SEN12MS": (
        Step(
            "PYTHONPATH=tests python -c "
            "\"from data.make_sen12ms import write_sen12ms; write_sen12ms('build/sen12ms')\"",
            {"PYTHONPATH=tests": "PYTHONPATH=PROJECT:PROJECT/tests"},
            makes=("build/sen12ms/ROIs1158_spring/s1_1/*.tif",),
        ),
        Step("sarmatch data check path/to/SEN12MS", SEN12MS, says=("sen12ms, 8 pairs", "no problems")),
        Step(
            "sarmatch train --profile sen12ms --data build/sen12ms --pretraining.max-steps 1 --training.max-steps 1",
            add=FEW,
            says=("trained matcher-", "confidence fitted"),
            makes=("runs/sen12ms/matcher-*/confidence.json", "runs/sen12ms/pretraining-*/model.safetensors"),
        ),
        Step("sarmatch train --profile sen12ms --data path/to/SEN12MS", SEN12MS, FEW + ONE, says=("loaded matcher-",)),
        Step(
            "python -m companion book --profile sen12ms --data path/to/SEN12MS",
            SEN12MS,
            "--chapters data --no-site",
            ("build/sen12ms/book/data.ipynb",),
        ),
    ),
    "two processes": (
        Step(
            "accelerate launch --multi_gpu --num_processes 4 -m sarmatch train "
            "--profile sen12ms --data path/to/SEN12MS",
            {"--multi_gpu --num_processes 4": CPU, "sen12ms --data path/to/SEN12MS": "smoke"},
            makes=("runs/smoke/matcher-*/confidence.json",),
            says=("trained matcher-",),
        ),
        Step(
            'config = sarmatch.profile("sen12ms", "path/to/SEN12MS")',
            {'"sen12ms", "path/to/SEN12MS"': '"smoke"', "num_processes=4": "num_processes=1"},
        ),
    ),
    "tools": (
        Step("jupyter lab", add="--version"),
        Step("pytest --nbval book", {"book": "book/claims.ipynb"}, "--quiet", says=("passed",)),
        Step("python -m companion.benchmarks.scenes", add="--side 512 --fractions 1", says=("the bound is 4 GB",)),
    ),
}
"""What is run, in order and in one folder each."""

NAMES = ("sarmatch train", "sarmatch match", "sarmatch evaluate", "sarmatch train --profile sen12ms --help")
"""Commands that the text names without what they need: they explain themselves."""

RECIPES: dict[str, tuple[str, ...]] = {
    "make book": ("python -m companion book --profile demo",),
    "make book PROFILE=s1s2 DATA=path/to/data": ("python -m companion book --profile s1s2 --data path/to/data",),
    "make book PROFILE=smoke": ("python -m companion book --profile smoke",),
    "PROFILE=s1s2-smoke": ("python -m companion book --profile s1s2-smoke",),
    "PROFILE=sen12ms": ("python -m companion book --profile sen12ms",),
    "make serve": ("python -m http.server --bind 127.0.0.1 --directory build/demo/book/_build/html 8000",),
    "make test": (
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "jupyter-book build book --all -W -n --keep-going",
        "pytest -n 2 --dist worksteal tests",
        "pytest -n 2 --dist loadfile --nbval --nbval-current-env book",
    ),
}
"""What make would run; of a lone variable, `make book` with it. `book` is run above, `make test` runs this file."""

OPTIONS = (
    "python -m companion.benchmarks.inference --profile sen12ms --size 256 --device cuda",
    "python -m companion.benchmarks.inference --profile s1s2 --size 256 --device cpu --threads 1",
    "python -m companion.benchmarks.inference [--profile s1s2] [--size 256] [--passes 1 5 20] [--device cpu]",
    "python -m companion.benchmarks.scenes [--side 10980] [--fractions 0.25 0.5 1] [--model affine] [--workers 1]",
    "python -m companion.benchmarks.peers --data DATA [--profile s1s2] [--pairs 8] [--out book/results/s1s2]",
    "python -m companion.benchmarks.speed --data DATA [--profile s1s2] [--pairs 24] [--out book/results/s1s2]",
    "python -m companion.benchmarks.engine --before ../before --data DATA [--profile s1s2] [--out book/results/s1s2]",
)
"""Measurements that take minutes or a GPU: that the script takes these options is checked, its parts have tests."""

ELSEWHERE = {
    "python -m companion compare": "companion/test_companion_cli.py::test_help_explains_every_option",
    "sarmatch export s1s2 -o s1s2.onnx": "model/test_onnx.py::test_the_command_exports_the_named_model",
    "jupyter-book build book": "companion/site/test_build.py::test_site_is_built_and_its_failure_reported",
}
"""Tested by what is named; of the whole book, `make test` builds the site before it runs the tests."""

NOT_RUN = {
    "git worktree add --detach ../before COMMIT": "the commit is the reader's choice",
    "conda env create -f environment.yml && conda activate sarmatch": "no conda; test_environment.py reads the file",
    "pip install -e '.[book,gis,test]'": "would install into the environment that the tests run in",
    "docker build -t sarmatch . && docker run --rm -p 8888:8888 sarmatch": "no docker",
}
"""Not run, and why."""
