"""The command line: subcommands only; heavy imports inside the function that needs them.

Exit 0: done. 2: the user's input was refused, one line, nothing written. 1: a fault of ours.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agg2exp_core import volumes
from agg2exp_core.access import VARIABLE, read_sign_in
from agg2exp_core.jobs.progress import is_disk_full, one_line
from agg2exp_core.records import USUAL_SAMPLES, InputError, Method
from agg2exp_core.settings import (
    checked_device,
    checked_id,
    data_root,
    is_every_address,
    is_own_address,
    list_models,
    own_address,
)

if TYPE_CHECKING:
    from rich.text import Text

    from agg2exp_core.analysis.importance import Importance
    from agg2exp_core.cluster import Work
    from agg2exp_core.masked import Summary
    from agg2exp_core.store.cohorts import Case

app = typer.Typer(add_completion=False, help="Why did a 3D segmentation model draw what it drew?")
cohort_app = typer.Typer(help="Cohorts of scans.")
model_app = typer.Typer(help="Models.")
review_app = typer.Typer(help="Review sessions.")
export_app = typer.Typer(help="Files for other programs.")
app.add_typer(cohort_app, name="cohort")
app.add_typer(model_app, name="model")
app.add_typer(review_app, name="review")
app.add_typer(export_app, name="export")

Root = Annotated[Path | None, typer.Option("--data", help="Data root (default: AGG2EXP_DATA or the project's data).")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
LabelSetName = Annotated[
    str, typer.Option("--label-set", help="The label set of label maps of which the cohort's list tells none.")
]
Pseudonyms = Annotated[
    Path | None,
    typer.Option("--pseudonyms", help="Key file, made if it is not there: cases get names that only it can trace."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:<number>.")]
Model = Annotated[str, typer.Option("--model", help="A model of the data root.")]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", help="A scan (NIfTI) to work on; of several channels, a file for each, in order, or one 4D file."
    ),
]
Cohort = Annotated[str | None, typer.Option("--cohort", help="A cohort to work on.")]

Report = Callable[[int, int, str], None]

STOPPED = 130
"""The exit code after Ctrl+C, as shells have it."""

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What Typer raises for a command line that it cannot read; it has no public name of its own."""


def main() -> None:
    """Entry point: an InputError is the user's one line, everything else is our fault."""
    # MONAI and torch announce changes of theirs to developers; a user of the command line can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    # And MONAI, where pydicom is installed, misses a decoder for graphics cards that nothing here needs.
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader", UserWarning)
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
        if code == STOPPED:
            raise KeyboardInterrupt  # which Typer took for the code
        raise SystemExit(code)
    except InputError as refused:
        print(f"agg2exp: {refused}", file=sys.stderr)
        raise SystemExit(2) from None
    except USAGE_ERROR as refused:
        print(f"agg2exp: {' '.join(refused.format_message().split())} (see --help)", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"agg2exp: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except (typer.Abort, KeyboardInterrupt):
        print("agg2exp: stopped; what was finished stays", file=sys.stderr)
        raise SystemExit(STOPPED) from None


@app.command()
def demo(data: Root = None) -> None:
    """Make the demo ready: copy what is shipped, generate the scans, time the models here. Twice is harmless."""
    from agg2exp_core import demo as shipped
    from agg2exp_core.store import results

    root = data_root(data)
    with progress("Demo scans") as report:
        shipped.make_ready(root, report)
    if new := [model for model in shipped.MODELS if results.read_latest(root, model) is None]:
        from agg2exp_core import pipeline

        with progress("Timing the models on this machine") as report:
            for number, model in enumerate(new):
                report(number, len(new), model)
                pipeline.time_model(root, model)
    print(f"The demo is ready in {root}")


@app.command()
def dashboard(
    data: Root = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="127.0.0.1 keeps it on this machine.")] = "127.0.0.1",
    sign_in: Annotated[
        Path | None, typer.Option("--sign-in", envvar=VARIABLE, help="File of the provider and of who may do what.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in: whoever reaches it sees and changes all.")
    ] = False,
    host: Annotated[
        list[str] | None, typer.Option(help="Another name under which browsers reach it; `*` for any.")
    ] = None,
) -> None:
    """Open the dashboard in the browser."""
    if sign_in is not None and insecure:
        raise InputError("--sign-in and --insecure exclude each other", "both")
    reached = [name for name in (address, *(host or ())) if not is_own_address(name)]
    if reached and not insecure and sign_in is None:
        allowed = "127.0.0.1, or --insecure where whoever reaches it may see and change all"
        raise InputError("an address that other machines reach needs --sign-in FILE", ", ".join(reached), allowed)
    hosts, secrets = ["127.0.0.1", "localhost", address, *(host or ())], []
    if sign_in is not None:
        hosts.append(read_sign_in(sign_in).host)
        os.environ[VARIABLE] = str(sign_in.resolve())
        secrets = [f"--secrets.files={sign_in.resolve()}"]
    command = [f"--server.port={port}", f"--server.address={address}", *secrets]
    if is_every_address(address):
        # Else Streamlit asks Amazon how the world reaches this machine, to print it.
        command += ["--browser.serverAddress=localhost"]
        if insecure and (own := own_address()):
            hosts.append(own)
            print(f"\n  Other machines open http://{own}:{port}", flush=True)
    script = Path(__file__).resolve().parents[1] / "dashboard" / "server.py"
    os.environ["AGG2EXP_DATA"] = str(data_root(data))
    os.chdir(script.parents[1])  # where Streamlit looks for .streamlit/config.toml
    # Of pages elsewhere that rebind their name to this machine, none is among these.
    command += [f"--server.allowedHosts={name}" for name in hosts]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(script), *command])


@app.command()
def explain(
    model: Model,
    image: Images = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for --image's results.")] = None,
    label: Annotated[Path | None, typer.Option("--label", help="Label map of --image, for Dice.")] = None,
    cohort: Cohort = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only these cases of the cohort.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="smoothgrad, gradient, gradient_x_input, integrated_gradients, quantile_gradient, ablation, kernelshap"
        ),
    ] = "smoothgrad",
    targets: Annotated[str, typer.Option(help="all, or organs separated by commas.")] = "all",
    estimator: Annotated[str, typer.Option(help="SmoothGrad's: antithetic, or plain as published.")] = "antithetic",
    samples: Annotated[
        int | None, typer.Option(help="Pairs of noisy copies at most, plain copies, steps, voxels or coalitions.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="A target has enough pairs at an error of its masses of this.")
    ] = 0.005,
    sigma: Annotated[float, typer.Option(help="SmoothGrad's noise as a share of the scan's range.")] = 0.1,
    baseline: Annotated[str, typer.Option(help="Start of a path: air, ones, mean, uniform, normal, blurred.")] = "air",
    nodes: Annotated[str, typer.Option(help="Of a path: linear, logarithmic, or auto, as suits the network.")] = "auto",
    mask: Annotated[
        str,
        typer.Option(help="Explained voxels: prediction, label, tp, fp, fn, or a mask's file (--cohort: a folder)."),
    ] = "prediction",
    features: Annotated[str, typer.Option(help="What KernelSHAP replaces: regions, cubes or supervoxels.")] = "regions",
    value: Annotated[str, typer.Option(help="Of ablation and KernelSHAP: logits, dice or counts.")] = "logits",
    skip: Annotated[
        float, typer.Option(help="Leave out windows with less than this share of a target; counted as an error.")
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="Of gradients: float32, bfloat16, or auto: what `model check` chose for the device.")
    ] = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    saliency_dtype: Annotated[str, typer.Option(help="Of maps: view (small), float16, float32 or none.")] = "view",
    workers: Annotated[int | None, typer.Option(help="Of --cohort: so many cases at a time, each a process.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of --cohort: address of a Dask scheduler to give cases to.")
    ] = None,
    tls: Annotated[Path | None, typer.Option(help="Of --scheduler: folder of ca.pem, cert.pem and key.pem.")] = None,
    data: Root = None,
    job: Annotated[str | None, typer.Option(hidden=True, help="Report to this job of the dashboard.")] = None,
) -> None:
    """Attribute a scan's or a cohort's predicted organs and sum the attributions over all organs."""
    root = data_root(data)
    _check_together("--image", image, {"--out": out, "--label": label})
    _check_together("--cohort", cohort, {"--case": case, "--workers": workers, "--scheduler": scheduler})
    _check_together("--scheduler", scheduler, {"--tls": tls})
    with reporting(root, job, "Explaining") as report, TemporaryDirectory(prefix="agg2exp-") as room:
        if image:
            image = _channel_files(image, Path(room))  # before seconds of loading what computes
        from agg2exp_core import cluster, pipeline

        mask, drawn = _mask(mask, bool(image))
        plan = pipeline.Plan(
            model,
            Method(
                method,
                samples if samples is not None else _usual_samples(method, features),
                sigma,
                baseline,
                seed,
                mask,
                estimator,
                tolerance,
                nodes,
                features,
                value,
                skip,
                precision,
            ),
            () if targets == "all" else tuple(name.strip() for name in targets.split(",")),
            device,
            saliency_dtype,
            drawn,
        )
        if image:
            one, folder = _scan_alone(image, label, cohort, out)
            explaining = pipeline.Explaining(root, plan)
            explaining.check_free(one, folder)
            explaining.case(one, folder, report)
            print(f"{one.case_id} explained in {folder}")
            return
        assert cohort is not None
        work, cases = cluster.Work(root, plan, cohort), _chosen_cases(root, cohort, case)
        if workers is not None or scheduler is not None:
            run = _explain_on(_cluster(workers, scheduler, tls), work, cases, report)
        else:
            _say_estimate(work, cases)
            run = _explain_here(work, cases, report)
    print(f"{len(cases)} of {cohort} explained as run {run}")


def _explain_here(work: Work, cases: list[Case], report: Report) -> str:
    """Case by case, in this process; the run that they are part of."""
    from agg2exp_core import pipeline
    from agg2exp_core.model.predict import pick_device
    from agg2exp_core.store import results

    device = work.plan.device
    if isinstance(report, JobReport):
        # Workers that are to share the CPU take no turns on it.
        report.job.turn(device if device.startswith("cpu:") else str(pick_device(device)))
    explaining = pipeline.Explaining(work.root, work.plan)
    results.recover(work.root / "runs" / work.cohort / explaining.run / "cases")

    def explain(case: Case, inner: Report) -> None:
        explaining.cohort_case(work.cohort, case, inner)
        if isinstance(report, JobReport):
            report.job.finished(work.cohort, explaining.run, case.case_id)

    # Before the report ends: a job with refused cases is none that is done.
    _say_refused(_each(cases, report, explain), len(cases))
    return explaining.run


def _cluster(workers: int | None, scheduler: str | None, tls: Path | None) -> AbstractContextManager[Any]:
    """A client of the cluster that was asked for, once it is entered."""
    from agg2exp_core import cluster

    if workers is None:
        assert scheduler is not None
        return cluster.existing(scheduler, tls)
    if scheduler is not None:
        raise InputError("cases go to --workers of this machine or to a --scheduler", "both")
    return cluster.local(workers)


def _explain_on(connected: AbstractContextManager[Any], work: Work, cases: list[Case], report: Report) -> str:
    """Case by case, on the workers of a cluster; the run that they are part of, or several."""
    from agg2exp_core import cluster, pipeline

    pipeline.Explaining(work.root, replace(work.plan, device="cpu"))  # what cannot be explained is refused once, here
    refused, faults, runs = [], 0, set()
    with connected as client:
        _say_estimate(work, cases)
        for done in cluster.explain_cases(client, work, cases, report):
            if done.refused:
                refused.append(f"{done.case_id}: {done.refused}")
                faults += done.fault
            else:
                runs.add(done.run)
    if faults:
        _tell(refused)
        raise RuntimeError(_count_of(refused, len(cases)))
    _say_refused(refused, len(cases))
    return ", ".join(sorted(runs))


@app.command()
def worker(device: Device = "auto", data: Root = None) -> None:
    """Compute what waits in the queue, on one device, until nothing is left. Run one for each device of a machine.

    The dashboard starts one by itself, for `auto`. Stopped, it leaves what it was at in the queue.
    """
    from agg2exp_core.jobs.worker import work

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not work(data_root(data), checked_device(device)):
        print(f"agg2exp: the worker of {device} runs already, and takes all that waits for it", file=sys.stderr)


@app.command()
def aggregate(
    cohort: Annotated[str, typer.Option("--cohort", help="A cohort.")],
    run: Annotated[str, typer.Option("--run", help="A run of it with stored attribution maps.")],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks", help="Folder of <case_id>.nii.gz, whose labels names.csv names, or <case_id>/<region>.nii.gz."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the region set, such as pathology.")],
    logits: Annotated[
        str, typer.Option(help="Files hold logits, a channel a region: exclusive (the first is none) or overlapping.")
    ] = "",
    ids: Annotated[str, typer.Option(help="Only these labels, separated by commas.")] = "",
    joined: Annotated[bool, typer.Option("--joined", help="All of them are one region.")] = False,
    data: Root = None,
) -> None:
    """Sum a run's stored attribution over masks of its cases, such as pathologies: a region set beside the organs."""
    from agg2exp_core import mask_files, masked

    root = data_root(data)
    with progress("Masks") as report:
        folder = masked.find_run(root, cohort, run)
        reading = mask_files.Reading(name, logits, _ids(ids), joined)
        found = mask_files.find_masks(root, cohort, masks, reading, report)
        summary = masked.sum_masks(folder, found, report)
    _say_summed(name, ", ".join(dict.fromkeys(found.regions.values())), summary)
    _say_refused(summary.refused, len(found.files))


@app.command()
def thin(
    cohort: Annotated[str, typer.Option("--cohort", help="A cohort.")],
    run: Annotated[str, typer.Option("--run", help="A run of it with full attribution maps.")],
    data: Root = None,
) -> None:
    """Make a run's full maps maps to look at, some 15 times smaller; its sums, also over masks, stay as they are."""
    from agg2exp_core import thinning
    from agg2exp_core.masked import find_run

    folders = sorted((find_run(data_root(data), cohort, run) / "cases").glob("[!.]*/"))
    count, refused = 0, []
    with progress("Thinning") as report:
        for index, folder in enumerate(folders):
            report(index, len(folders), folder.name)
            try:
                count += thinning.thin_case(folder)
            except InputError as error:
                refused.append(f"{folder.name}: {error}")
    print(f"{count} maps made small")
    _say_refused(refused, len(folders))


@export_app.command("saliency")
def export_saliency(
    cohort: Annotated[str, typer.Option("--cohort", help="A cohort.")],
    run: Annotated[str, typer.Option("--run", help="A run of it with stored attribution maps.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for a folder a case.")],
    case: Annotated[list[str] | None, typer.Option("--case", help="Only these cases of the cohort.")] = None,
    targets: Annotated[str, typer.Option(help="all, or organs separated by commas.")] = "all",
    dicom: Annotated[
        Path | None, typer.Option("--dicom", help="Folder of the DICOM series that the cohort was added from.")
    ] = None,
    key: Pseudonyms = None,
    data: Root = None,
) -> None:
    """Write a run's maps and predictions as NIfTI on the scans' own grids, for 3D Slicer, ITK-SNAP and others.

    With --dicom also as DICOM segmentation and parametric maps, which carry the identity that their series carries.
    """
    from agg2exp_core import exporting
    from agg2exp_core.masked import find_run
    from agg2exp_core.store import results

    root = data_root(data)
    folder_of_run = find_run(root, cohort, run)
    if dicom is not None and key is not None:
        raise InputError("DICOM carries who the patient is, and so goes without pseudonyms", "--dicom and --pseudonyms")
    originals = None if dicom is None else exporting.find_originals(root, folder_of_run, dicom)
    explained = {path.name for path in (root / "runs" / cohort / run / "cases").glob("[!.]*")}
    cases = [one for one in _chosen_cases(root, cohort, case) if case or one.case_id in explained]
    wanted = () if targets == "all" else tuple(name.strip() for name in targets.split(","))
    count, named = 0, _namer(key) or str

    def export(one: Case, inner: Report) -> None:
        nonlocal count
        folder = results.case_path(root, cohort, run, one.case_id)
        if originals is not None:
            exporting.export_dicom(one, folder, out / one.case_id, wanted, originals)
        count += exporting.export_case(one, folder, out / named(one.case_id), wanted, inner)

    with progress("Exporting") as report:
        refused = _each(cases, report, export)
    print(f"{count} maps of {len(cases) - len(refused)} cases written to {out}")
    _say_refused(refused, len(cases))


@app.command()
def predict(
    model: Model,
    image: Images = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the label map.")] = None,
    cohort: Cohort = None,
    device: Device = "auto",
    data: Root = None,
) -> None:
    """Segment a scan or a cohort; label maps lie on the scans' own grids, and volumes.csv has each organ's size."""
    from agg2exp_core import pipeline
    from agg2exp_core.files import write_text
    from agg2exp_core.model.bundle import find_bundle

    root = data_root(data)
    with progress("Segmenting") as report, TemporaryDirectory(prefix="agg2exp-") as room:
        if image:
            image = _channel_files(image, Path(room))
            one, folder = _scan_alone(image, None, cohort, out)
            if (folder / "manifest.json").exists():
                raise InputError("--out must not be a case's results", folder.name)
            segmenting = pipeline.Segmenting(find_bundle(root, model), device)
            sizes = {one.case_id: segmenting.case(one, folder / "prediction.nii.gz", report)}
            write_text(folder / "volumes.csv", _volumes_csv(sizes))
            print(f"label map written as {folder / 'prediction.nii.gz'}")
            return
        cases = _chosen_cases(root, cohort, None)
        folder = out or root / "predictions" / str(cohort) / model
        segmenting = pipeline.Segmenting(find_bundle(root, model), device)
        sizes = {}

        def segment(item: Case, inner: Report) -> None:
            sizes[item.case_id] = segmenting.case(item, folder / f"{item.case_id}.nii.gz", inner)

        refused = _each(cases, report, segment)
        if sizes:
            write_text(folder / "volumes.csv", _volumes_csv(sizes))
    print(f"{len(cases) - len(refused)} label maps written to {folder}")
    _say_refused(refused, len(cases))


@app.command()
def train(
    cohort: Annotated[str, typer.Option("--cohort", help="A cohort with label maps.")],
    model: Annotated[str, typer.Option("--model", help="Name of the new model.")],
    label_set: LabelSetName = "thorax17",
    network: Annotated[str, typer.Option(help="swinunetr or segresnet.")] = "swinunetr",
    steps: Annotated[int, typer.Option(min=1)] = 1200,
    spacing: Annotated[float, typer.Option(min=0.2, max=20, help="mm between voxels that the network sees.")] = 5.0,
    window: Annotated[int, typer.Option(min=32, max=256, help="Voxels along each edge of a window.")] = 64,
    seed: Seed = 0,
    data: Root = None,
) -> None:
    """Train a network on a labelled cohort and write it as a MONAI bundle. Stopped, the same command goes on."""
    from agg2exp_core.model.plan import TrainPlan
    from agg2exp_core.model.train import mean_dice, train_model
    from agg2exp_core.store.cohorts import cohort_labels

    root = data_root(data)
    cases = _chosen_cases(root, cohort, None)
    if several := [case.case_id for case in cases if case.further]:
        raise InputError("training takes scans of one channel", f"{several[0]} of several", "a model trained elsewhere")
    pairs = [(case.image, case.label) for case in cases if case.image and case.label]
    labels = cohort_labels(root, cohort, label_set)
    plan = TrainPlan(len(labels.names), steps, seed=seed, spacing=spacing, window=window, network=network)
    with progress("Training") as report:
        record = train_model(root / "models", checked_id("model", model), labels, pairs, plan, report)
    dice = record["held_out_dice"]
    worst = min(((score, name) for name, score in dice.items() if score is not None), default=(0.0, "none"))
    print(f"held-out Dice: mean {mean_dice(dice):.3f}, worst {worst[1]} {worst[0]:.3f}")
    if absent := [name for name, score in dice.items() if score is None]:
        print(f"no held-out case has {', '.join(absent)}")


@app.command()
def phantom(
    cohort: Annotated[str, typer.Option("--cohort", help="Name of the new cohort.")],
    cases: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 10_000,
    data: Root = None,
) -> None:
    """Write a cohort of synthetic thorax CTs with exact labels, to train on or to try things."""
    from agg2exp_core.phantom import training_plan, write_cohort

    folder = data_root(data) / "cohorts" / checked_id("cohort", cohort)
    if (folder / "cases.csv").exists():
        raise InputError("a new cohort needs a name that is free", repr(cohort))
    with progress("Phantoms") as report:
        write_cohort(folder, training_plan(cases, seed), progress=lambda done, total: report(done, total, "scans"))


@app.command("import-csv")
def import_csv(
    file: Annotated[Path, typer.Argument(help="A wide CSV as published with Agg²Exp.")],
    cohort: Annotated[str, typer.Option("--cohort")],
    run: Annotated[str, typer.Option("--run")] = "published",
    data: Root = None,
) -> None:
    """Import a published wide table of importances as a run."""
    from agg2exp_core.store.published_csv import import_csv as read

    count = read(data_root(data), file, cohort, run)
    print(f"{count} cases imported as cohort {cohort}, run {run}")


@app.command("export-csv")
def export_csv(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    cohort: Annotated[str, typer.Option("--cohort")],
    run: Annotated[str, typer.Option("--run")] = "published",
    key: Pseudonyms = None,
    data: Root = None,
) -> None:
    """Write a run as the published wide CSV; an imported one comes out bit for bit."""
    from agg2exp_core.store.published_csv import export_csv as write

    write(data_root(data), cohort, run, file, _namer(key))
    print(f"{cohort}, run {run}, written to {file}")


@app.command()
def check(data: Root = None) -> None:
    """Verify every result of the root, put aside what is damaged with how to compute it again, rebuild the caches."""
    from agg2exp_core.store.checking import check_root

    root = data_root(data)
    with progress("Checking") as report:
        findings = check_root(root, report)
    for one in findings:
        print(f"{one.place}: {one.wrong}; {one.remedy}")
    if findings:
        raise InputError("everything in the root must verify", f"{len(findings)} that did not")
    print(f"all of {root} verifies")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT on the views cases, importance, agreement, runs, outliers.")],
    format: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    data: Root = None,
) -> None:
    """Ask the SQL views."""
    from agg2exp_core import spreadsheet
    from agg2exp_core.store import catalog, queries

    if format not in ("table", "csv", "json"):
        raise InputError("format must be one of table, csv, json", repr(format))
    answer = queries.run_user_query(catalog.connect(data_root(data)), sql)
    if format == "csv":
        print(spreadsheet.to_csv(answer), end="")
    elif format == "json":
        rows = answer.astype(object).where(answer.notna(), None).to_dict("records")
        print(json.dumps(rows, indent=1, ensure_ascii=False, default=_plain))
    else:
        _print_table(answer)


@app.command()
def outliers(
    fit: Annotated[str, typer.Option("--fit", help="The ordinary ones: COHORT, or COHORT:RUN if it has several.")],
    score: Annotated[str, typer.Option("--score", help="Those to judge: COHORT or COHORT:RUN, the same if you like.")],
    data: Root = None,
) -> None:
    """Score how unusual the evidence is in each case and target; `agg2exp query "FROM outliers"` shows it."""
    from agg2exp_core.analysis.outliers import outlier_table
    from agg2exp_core.store import catalog
    from agg2exp_core.store.outliers import write_outliers

    root = data_root(data)
    con = catalog.connect(root)
    usual, judged = _masses(con, fit), _masses(con, score)
    with progress("Outliers") as report:
        table = outlier_table(usual[1], None if usual[0] == judged[0] else judged[1], report)
    write_outliers(root, *judged[0], table)
    print(
        f"{len(judged[1].cases)} cases of {':'.join(judged[0])} scored against {len(usual[1].cases)} of "
        f"{':'.join(usual[0])}: {int(table['flagged'].sum())} of {len(table)} scores flagged"
    )


@cohort_app.command("add")
def cohort_add(
    folder: Annotated[
        Path, typer.Argument(help="NIfTI scans: flat, or as TotalSegmentator, nnU-Net or the Decathlon keep them.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the new cohort.")],
    labels: Annotated[Path | None, typer.Option(help="Folder of label maps named as the scans.")] = None,
    metadata: Annotated[Path | None, typer.Option(help="CSV with a column case_id and any others.")] = None,
    label_set: Annotated[
        str, typer.Option(help="Where each class has a file of its own: the label set that they are joined into.")
    ] = "thorax17",
    joins: Annotated[
        Path | None, typer.Option(help="CSV with part and organ: which classes are joined into which organ.")
    ] = None,
    data: Root = None,
) -> None:
    """Add a folder of scans as a cohort. The scans stay where they are."""
    from agg2exp_core.store.cohorts import Brought, add_cohort

    with progress("Adding") as report:
        brought = Brought(labels, metadata, label_set, joins)
        count, notes = add_cohort(data_root(data), name, folder, brought, report)
    for note in notes:
        print(f"agg2exp: {note}", file=sys.stderr)
    print(f"{count} cases added as cohort {name}")


@cohort_app.command("check")
def cohort_check(
    name: Annotated[str, typer.Argument(help="A cohort.")],
    label_set: LabelSetName = "thorax17",
    require: Annotated[str, typer.Option(help="Tell the cases that hold organs a,b, or all of the label set.")] = "",
    save: Annotated[str, typer.Option(help="Save those cases as a list of this name.")] = "",
    format: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
    data: Root = None,
) -> None:
    """Read every file of a cohort and tell what is wrong or odd, before anything is computed on it."""
    from agg2exp_core import spreadsheet
    from agg2exp_core.store.cohort_check import check_cohort, holding_all
    from agg2exp_core.store.cohorts import cohort_labels
    from agg2exp_core.store.lists import CaseList, save_list

    if format not in ("table", "csv"):
        raise InputError("format must be one of table, csv", repr(format))
    _check_together("--require", require, {"--save": save})
    root = data_root(data)
    labels = cohort_labels(root, name, label_set)
    with progress("Checking") as report:
        checked = check_cohort(root, name, labels, report)
    print(spreadsheet.to_csv(checked.table), end="") if format == "csv" else _print_table(checked.told())
    if require:
        found = holding_all(checked, labels, require)
        some = ", ".join(found[:10]) + (", …" if len(found) > 10 else "")
        print(f"{len(found)} of {len(checked.table)} cases hold {require}: {some}", file=sys.stderr)
        if save:
            save_list(root, CaseList(save, name, tuple(found), f"hold {require}"))
    if not checked.sound:
        wrong = int(checked.table["wrong"].astype(bool).sum())
        raise InputError("every case must be sound", f"{wrong} of {len(checked.table)} that cannot be used")


@cohort_app.command("list")
def cohort_list(data: Root = None) -> None:
    """List the cohorts."""
    from agg2exp_core.store.cohorts import list_cohorts, read_cases

    root = data_root(data)
    for name in _listed("cohorts", list_cohorts(root), root):
        print(f"{name}\t{len(read_cases(root, name))} cases")


@model_app.command("list")
def model_list(data: Root = None) -> None:
    """List the models."""
    from agg2exp_core.model.bundle import find_bundle

    root = data_root(data)
    for name in _listed("models", list_models(root), root):
        bundle = find_bundle(root, name)
        print(f"{name}\t{len(bundle.classes)} classes\t{bundle.weights.stat().st_size / 2**20:.1f} MiB")


@model_app.command("add")
def model_add(
    source: Annotated[
        Path, typer.Argument(help="Folder of a MONAI bundle or of nnU-Net's training, or a file of weights.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the new model (default: as the source is named).")] = "",
    labels: Annotated[
        Path | None, typer.Option("--labels", help="A CSV: id and name of every class, maybe group, color and title.")
    ] = None,
    spacing: Annotated[str, typer.Option("--spacing", help="Of bare weights: mm, such as 1.5,1.5,2.")] = "",
    window: Annotated[str, typer.Option("--window", help="Of bare weights: voxels, such as 96,96,96.")] = "",
    intensity: Annotated[
        str, typer.Option("--intensity", help="Of bare weights: the HU scaled to 0 and 1, such as -175,250.")
    ] = "",
    folds: Annotated[str, typer.Option("--folds", help="Of nnU-Net: folds to take the mean of, such as 0,1.")] = "",
    mirror: Annotated[bool, typer.Option("--mirror", help="Of nnU-Net: look at mirror images too.")] = False,
    check: Annotated[
        bool, typer.Option(help="Explain a phantom, and measure half precision (see `model check`).")
    ] = True,
    device: Device = "auto",
    data: Root = None,
) -> None:
    """Take in a model: a MONAI bundle as it is, nnU-Net's folders and bare weights wrapped into one.

    A config is read as data, and nothing but allowed classes is built. TorchScript (.ts) is code of its author, which
    is run: what touches files is refused, but take it from those you trust.
    """
    from agg2exp_core.model.adding import Wrapping, add_model

    root = data_root(data)
    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "_", source.stem if source.is_file() else source.resolve().name)
    wrapping = Wrapping(
        labels,
        _numbers("--spacing", spacing, 3, 0.01),
        tuple(int(edge) for edge in _numbers("--window", window, 3, 1)),
        _numbers("--intensity", intensity, 2),
        tuple(fold.strip() for fold in folds.split(",") if fold.strip()),
        mirror,
    )
    with progress("Taking in") as report:
        report(0, 1, name)
        bundle = add_model(root, source, name, wrapping)
    print(f"{name} taken in: {len(bundle.classes)} classes, label set {bundle.label_set}")
    if check:
        model_check(name, None, device, root)


@model_app.command("check")
def model_check(
    name: Annotated[str, typer.Argument(help="A model of the data root.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A scan to try it on (default: a phantom); a file a channel.")
    ] = None,
    device: Device = "auto",
    data: Root = None,
) -> None:
    """Run a model on a scan and measure what half precision does to its explanations; `explain` then goes by it."""
    from agg2exp_core import pipeline

    root = data_root(data)
    with progress("Checking") as report:
        report(0, 1, name)
        kind, measured = pipeline.check_model(root, name, device, image or ())
    print(
        f"{name} on {kind}: bfloat16 is off by {measured.mass_error:.4f} and {measured.speedup:.1f} times as fast; "
        f"{measured.chosen} chosen"
    )


@review_app.command("list")
def review_list(data: Root = None) -> None:
    """List the review sessions."""
    from agg2exp_core.store import reviews

    root = data_root(data)
    for name in _listed("review sessions", reviews.list_sessions(root), root):
        session = reviews.read_session(root, name)
        given = reviews.read_verdicts(root, session)
        print(
            f"{name}\t{len(session.items())} to judge\t{len(given.given)} verdicts of {len(given.reviewers)} reviewers"
        )


@review_app.command("export")
def review_export(
    session: Annotated[str, typer.Argument(help="A review session.")],
    out: Annotated[Path, typer.Option("--out", help="The CSV to write.")],
    key: Pseudonyms = None,
    data: Root = None,
) -> None:
    """Write a review session as a CSV, a row a verdict. The report with pictures is on the Review page."""
    from agg2exp_core import spreadsheet
    from agg2exp_core.analysis import review_report
    from agg2exp_core.files import write_text
    from agg2exp_core.store import reviews

    root = data_root(data)
    verdicts = reviews.read_verdicts(root, reviews.read_session(root, session))
    if not out.parent.is_dir():
        raise InputError("--out must lie in a folder that is there", str(out.parent))
    table = review_report.verdict_table(verdicts)
    if (named := _namer(key)) is not None:
        # The files of verdicts are named by their cases.
        table = table.assign(case_id=table["case_id"].map(named)).drop(columns=["file", "replaces"])
    write_text(out, spreadsheet.to_csv(table))
    for line in verdicts.damaged:
        print(f"agg2exp: left out: {line}", file=sys.stderr)
    print(f"{len(verdicts.given)} verdicts of session {session} written")


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A bar with the time left on standard error; in a log file instead a line every half minute."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LogLines(title)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title}: {note}")

        yield report


class _LogLines:
    """Progress for where no bar can be drawn."""

    EVERY_SECONDS = 30.0

    def __init__(self, title: str):
        self._title, self._said = title, time.monotonic()

    def __call__(self, done: int, total: int, note: str) -> None:
        if time.monotonic() - self._said >= self.EVERY_SECONDS:
            self._said = time.monotonic()
            print(f"{self._title}: {note}, {done} of {total}", file=sys.stderr, flush=True)


@contextmanager
def reporting(root: Path, job: str | None, title: str) -> Iterator[Any]:
    """Progress in the terminal or, for work started from the dashboard, in the job's folder."""
    if job is None:
        with progress(title) as report:
            yield report
        return
    from agg2exp_core.jobs.progress import Reporter

    with Reporter(root, job) as reporter:
        yield JobReport(reporter)


def _say_estimate(work: Work, cases: list[Case]) -> None:
    """What it takes, on standard error. InputError where it cannot fit."""
    from agg2exp_core.jobs.estimate import estimate
    from agg2exp_core.jobs.queue import Request

    plan, only = work.plan, tuple(case.case_id for case in cases)
    request = Request(work.cohort, "", plan.model, plan.method, plan.targets, plan.device, only)
    print(f"agg2exp: {estimate(work.root, request)}", file=sys.stderr)


class JobReport:
    """A Reporter that is called as the terminal's bar is."""

    def __init__(self, job: Any):
        self.job = job

    def __call__(self, done: int, total: int, note: str) -> None:
        self.job.progress(done, total, note)


def _each(cases: list[Case], report: Report, work: Callable[[Case, Report], Any]) -> list[str]:
    """Work on every case; one that is refused, or fails, does not keep the others from theirs.

    Returns what was refused. RuntimeError, after the last case, if one failed by a fault of ours.
    """
    refused, fault = [], None
    job = report.job if isinstance(report, JobReport) else None
    for index, case in enumerate(cases):
        steps = 0

        def inner(done: int, total: int, note: str, index: int = index, case: Case = case) -> None:
            nonlocal steps
            steps += 1
            if job and steps == 2:  # one step says that the case was there already
                job.begins(case.case_id)
            report(index * total + done, len(cases) * total, f"{case.case_id}, {note}")

        inner(0, 1, "starting")
        try:
            work(case, inner)
            if job and steps == 1:
                job.skipped()
        except Exception as error:
            if len(cases) == 1 or is_disk_full(error):
                raise
            if job:
                job.refused(case.case_id, one_line(error))
            refused.append(f"{case.case_id}: {one_line(error)}")
            if not isinstance(error, InputError):
                logging.exception("case %s failed", case.case_id)
                fault = error
    if fault:
        _tell(refused)
        raise RuntimeError(f"{_count_of(refused, len(cases))}; one of them: {one_line(fault)}") from fault
    return refused


def _say_summed(name: str, regions: str, summary: Summary) -> None:
    """What was summed and what was left out, with the reason."""
    print(f"region set {name} ({regions}): {len(summary.cases)} cases, {summary.targets} targets of them summed")
    if summary.without:
        print(f"left out, no stored attribution map: {summary.without} targets of these cases")
    for reason in dict.fromkeys(summary.left.values()):
        cases = [case_id for case_id, why in summary.left.items() if why == reason]
        more = ", …" if len(cases) > 5 else ""
        print(f"left out, {reason}: {len(cases)} cases ({', '.join(cases[:5])}{more})")


def _mask(given: str, alone: bool) -> tuple[str, Path | None]:
    """A mask's name and, if it is not a known one, the file of --image or the folder of a cohort it is drawn in."""
    from agg2exp_core.attribution.target import DRAWN, MASKS

    path, kind = Path(given), "a file" if alone else "a folder"
    if given in MASKS:
        return given, None
    if not (path.is_file() if alone else path.is_dir()):
        raise InputError(f"mask must be a known one or {kind}", repr(given), ", ".join(MASKS))
    stem = path.resolve().name.removesuffix(".gz").removesuffix(".nii")
    return DRAWN + (re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip(".-")[:20] or "mask"), path.resolve()


def _namer(key: Path | None) -> Callable[[str], str] | None:
    """What cases are called in an export; None: by their own names."""
    from agg2exp_core.pseudonyms import pseudonyms

    return None if key is None else pseudonyms(key)


def _volumes_csv(sizes: dict[str, dict[str, float]]) -> str:
    rows = [f"{case_id},{organ},{size:.3f}\n" for case_id, organs in sizes.items() for organ, size in organs.items()]
    return "case_id,organ,millilitres\n" + "".join(rows)


def _ids(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise InputError("--ids must be whole numbers separated by commas", repr(text))
    return tuple(map(int, words))


def _numbers(option: str, text: str, count: int, least: float = -math.inf) -> tuple[float, ...]:
    """Numbers separated by commas; none for an empty text."""
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (math.nan,)
    rising = count != 2 or found == tuple(sorted(set(found)))
    if found and not (len(found) == count and all(least <= one < math.inf for one in found) and rising):
        allowed = "the lower one first" if count == 2 else f"{least:g} or more"
        raise InputError(f"{option} must be {count} numbers separated by commas", repr(text)[:80], allowed)
    return found


def _usual_samples(method: str, features: str) -> int:
    """Coalitions of cubes or supervoxels need more: there are more of these than organs."""
    return 1000 if method == "kernelshap" and features != "regions" else USUAL_SAMPLES.get(method, 1)


def _listed(what: str, names: Sequence[str], root: Path) -> Sequence[str]:
    """The names; where there are none, said beside the output, so that what reads the list reads nothing."""
    if not names:
        print(f"agg2exp: no {what} in {root}", file=sys.stderr)
    return names


def _say_refused(refused: list[str], count: int) -> None:
    _tell(refused)
    if refused:
        raise InputError("every case must be sound", _count_of(refused, count))


def _tell(refused: list[str]) -> None:
    for line in refused:
        print(f"agg2exp: {line}", file=sys.stderr)


def _count_of(refused: list[str], count: int) -> str:
    return f"{len(refused)} of {count} refused" + (", the others are done" if len(refused) < count else "")


def _chosen_cases(root: Path, cohort: str | None, wanted: list[str] | None) -> list[Case]:
    from agg2exp_core.store.cohorts import find_case, list_cases

    if cohort is None:
        raise InputError("say what to work on", "neither --image nor --cohort", "--image FILE --out DIR, or --cohort C")
    return [find_case(root, cohort, name) for name in wanted] if wanted else list_cases(root, cohort)


def _check_together(option: str, given: object, companions: dict[str, object]) -> None:
    """InputError for a companion of an option that is not there: it would be ignored without a word."""
    for name, value in companions.items():
        if value and not given:
            raise InputError(f"{name} goes with {option}", f"{name} alone")


def _channel_files(images: list[Path], room: Path) -> list[Path]:
    """A 3D file for each channel; one that holds all of them is split into `room`."""
    if len(images) == 1 and volumes.is_stacked(images[0]):
        return volumes.split_channels(images[0], room)
    for image in images:
        volumes.check_header(image)
    return images


def _scan_alone(images: list[Path], label: Path | None, cohort: str | None, out: Path | None) -> tuple[Case, Path]:
    """--image as a case of its own, and the folder for its results."""
    from agg2exp_core.store.cohorts import Case

    if cohort is not None or out is None:
        raise InputError("--image goes with --out and without --cohort", images[0].name)
    if out.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError("--out must name a folder", out.name)
    # Not by the file's name: that may be the patient's, and results are passed on.
    return Case("scan", images[0], label, {}, tuple(images[1:])), out.resolve()


def _masses(con: Any, name: str) -> tuple[tuple[str, str], Importance]:
    """A run that a user named, and its local explanations."""
    from agg2exp_core.analysis.importance import to_array
    from agg2exp_core.records import Selection
    from agg2exp_core.store import queries

    place = queries.find_run(con, name)
    table = queries.local_explanations(con, Selection(*place))
    if table.empty:
        raise InputError("a run needs finished cases to find outliers", f"none in {':'.join(place)}")
    return place, to_array(table, queries.organ_names(con, *place))


def _print_table(answer: Any) -> None:
    from rich.table import Table

    table = Table(*[str(column) for column in answer.columns])
    for row in answer.itertuples(index=False):
        table.add_row(*map(_cell, row))
    Console().print(table)


def _cell(value: Any) -> Text:
    """Text, in which rich sees no markup; what is missing stays empty."""
    import pandas as pd
    from rich.text import Text

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return Text("")
    return Text(f"{value:.6g}" if isinstance(value, float) else str(value))


def _plain(value: Any) -> Any:
    """DuckDB's lists and dates for JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
