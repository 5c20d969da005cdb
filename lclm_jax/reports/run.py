"""The page of a run: what was trained, whether compression works and what it costs, read from the files in its directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lclm_jax.config import Config
from lclm_jax.config.values import with_current_names
from lclm_jax.files import run_layout
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports import course, findings, history, plots
from lclm_jax.reports.findings import Figures, ReportError, interval, percent, span
from lclm_jax.reports.history import History
from lclm_jax.reports.html import (
    Html,
    bullets,
    document,
    element,
    mark_differences,
    note,
    picture,
    section,
    table,
)

MAKES_ALL = "python -m launch.demo --config CONFIG"  # the file the run was made from; makes what is missing, reuses the rest
VIEWS = tuple(plots.VIEWS)
SHOWN = 12  # questions shown among the samples


def write_report(run_directory: str | Path) -> Path:
    """Writes `report.html` into the run's directory from its `config.json`, `log.jsonl`, `validation.jsonl`, `events.jsonl`,
    `evaluation.json` and `round_trip.json`.

    All but the config may be missing; the page then says so. Raises ReportError without a config or without matplotlib.
    """
    directory = Path(run_directory)
    config = _read(directory / run_layout.CONFIG)
    if config is None:
        raise ReportError(
            f"{directory} is not a run: it has no config.json; give the directory that training wrote to"
        )
    config = with_current_names(Config, config)
    run = history.read_history(directory, config)
    evaluation = _read(directory / run_layout.EVALUATION)
    measured = (_reconstruction, _ratios, _questions, _cost, _samples) if evaluation else ()
    body = [
        _summary(directory, config, run, evaluation),
        _training(config, run),
        _validation(run),
        *(part(evaluation) for part in measured),
        _limits(config, run, evaluation),
        course.happened(run),
        _files(config, evaluation, _read(directory / run_layout.ROUND_TRIP)),
    ]
    path = directory / run_layout.REPORT
    write_whole(path, document(f"Run {directory.resolve().name}", *body))
    return path


def _read(path: Path) -> Any:
    """The file's JSON, or None when there is no file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path} is not JSON ({error}); delete it and run {MAKES_ALL}") from error


def _summary(directory: Path, config: Figures, run: History, evaluation: Figures | None) -> Html:
    planned = sum(stage["steps"] for stage in config["stages"])
    done = run.done
    cards = [
        (f"{done:,} of {planned:,}", "training steps"),
        (
            findings.duration(findings.training_seconds(run.stages, config["data"])),
            "in the training loop",
        ),
        (findings.big_count(findings.trained_tokens(run.stages)), "tokens trained on"),
    ]
    if evaluation is None:
        words = [_missing("evaluation.json", "the model has not been evaluated")]
    else:
        verdict, facts = findings.summarise(evaluation)
        words = [element("p", verdict, class_="verdict"), bullets(facts)]
        cards.append(
            (findings.big_count(sum(evaluation["parameters"].values())), "parameters in all")
        )
        if evaluation["step"] < done:
            old = f"These figures are of step {evaluation['step']:,}; training has since reached step {done:,}."
            words.append(
                element(
                    "p", old, " To evaluate again: ", element("code", MAKES_ALL), class_="missing"
                )
            )
    if done < planned:
        where = f"in stage {run.stages[-1].name}, " if run.stages else ""
        words.append(
            element(
                "p",
                f"Training is not complete: {where}step {done:,} of {planned:,}.",
                class_="missing",
            )
        )
    if told := history.summarise(run):
        words.append(element("p", told))
    boxes = [
        element("div", element("b", figure), element("span", label), class_="card")
        for figure, label in cards
    ]
    name = directory.resolve().name
    return element(
        "header",
        element("h1", f"Run {name}"),
        element("section", *words, element("div", *boxes, class_="cards")),
        id="summary",
    )


def _training(config: Figures, run: History) -> Html:
    if not run.stages:
        return section("Training", _missing("log.jsonl", "no training step has been logged"))
    return section("Training", *course.training(config, run))


def _validation(run: History) -> Html:
    return course.validation(run) or section(
        "Validation",
        note(
            "There is no validation.jsonl in this directory, or nothing in it: held-out text was not read during training."
        ),
    )


def _reconstruction(evaluation: Figures) -> Html:
    entries = evaluation["reconstruction"]
    pictures = []
    for source in dict.fromkeys(entry["source"] for entry in entries):
        some = [entry for entry in entries if entry["source"] == source]
        groups = {
            f"{span(entry['lengths'])} tokens": {view: entry[view]["accuracy"] for view in VIEWS}
            for entry in some
        }
        alt = f"Bars of the reconstruction accuracy on {source}. " + " ".join(
            _in_words(name, group) for name, group in groups.items()
        )
        pictures.append(picture(source, plots.plot_proportions(groups, "tokens right"), alt))
    rows = []
    for entry in entries:
        shares = [interval(entry[view]["accuracy"]) for view in VIEWS]
        losses = [f"{entry[view]['loss']:.2f}" for view in VIEWS]
        rows.append(
            [
                f"{entry['source']}, {span(entry['lengths'])} tokens",
                entry["passages"],
                *shares,
                *losses,
            ]
        )
    return section(
        "Reconstruction",
        element(
            "p",
            "The decoder is asked to repeat a held-out passage. Counted is the share of tokens that are its best guess, each "
            "token given the true ones before it: with nothing to read, some can still be guessed from the passage so far.",
        ),
        element("div", *pictures, class_="pictures"),
        table(
            [
                "passages",
                "number",
                *plots.VIEW_NAMES.values(),
                *(f"loss {name}" for name in plots.VIEW_NAMES.values()),
            ],
            rows,
        ),
        _about_intervals(
            "Tokens of one passage depend on each other, so the true uncertainty is somewhat larger."
        ),
    )


def _ratios(evaluation: Figures) -> Html:
    entries = [entry for entry in evaluation["reconstruction"] if "ratios" in entry]
    if not entries:
        return Html("")
    lines = {
        f"{entry['source']}, {span(entry['lengths'])} tokens": {
            int(ratio): figures["accuracy"] for ratio, figures in entry["ratios"].items()
        }
        for entry in entries
    }
    ratios = list(next(iter(lines.values())))
    rows = [
        [name, *(interval(line[ratio]) for ratio in ratios), interval(entry["nothing"]["accuracy"])]
        for entry, (name, line) in zip(entries, lines.items(), strict=True)
    ]
    told = findings.judge_ratios(entries)
    return section(
        "Ratios",
        element(
            "p",
            "The same passages, every context in latents of one ratio; the model was asked for each.",
        ),
        picture(
            "",
            plots.plot_ratios(lines, "tokens right"),
            "Lines of the reconstruction accuracy by ratio. " + " ".join(told),
        ),
        table(["passages", *(f"ratio {ratio}" for ratio in ratios), "from nothing"], rows),
        _about_intervals(),
    )


def _questions(evaluation: Figures) -> Html:
    halves = [_answered(evaluation["questions"])] if evaluation["questions"] else []
    halves += [_continued(evaluation["continuation"])] if evaluation["continuation"] else []
    return (
        section("Questions and continuation", element("div", *halves, class_="pictures"))
        if halves
        else Html("")
    )


def _answered(questions: Figures) -> Html:
    shares = {view: questions[view] for view in VIEWS}
    alt = "Bars of the share of questions answered exactly. " + _in_words("All questions", shares)
    return element(
        "div",
        element("h3", "Questions answered"),
        element(
            "p",
            f"{questions['questions']} questions about a fact hidden in a context; the answer must be exact.",
        ),
        picture("", plots.plot_proportions({"all questions": shares}, "answered exactly"), alt),
        table(
            ["", *plots.VIEW_NAMES.values()],
            [["answered", *(interval(questions[view]) for view in VIEWS)]],
        ),
        _about_intervals(),
    )


def _continued(entries: Sequence[Figures]) -> Html:
    losses = [
        [
            entry["source"],
            entry["documents"],
            *(f"{entry[view]:.3f}" for view in VIEWS),
            findings.say_gap(entry),
        ]
        for entry in entries
    ]
    return element(
        "div",
        element("h3", "Continuation loss"),
        element(
            "p",
            "Nats per token of the rest of a held-out document after its opening was read in one of the three views; less is "
            "better. Gap closed is how much of the way from nothing to the full text the latents go.",
        ),
        table(
            [
                "source",
                "documents",
                *(name.replace("from", "after") for name in plots.VIEW_NAMES.values()),
                "gap closed",
            ],
            losses,
        ),
    )


def _cost(evaluation: Figures) -> Html:
    blocks = []
    for name, entries in evaluation["cost"].items():
        span = (
            f"for {entries[0]['tokens']:,} to {entries[-1]['tokens']:,} tokens of context, {name}"
        )
        pictures = [
            picture(
                "",
                plots.plot_cost(entries, key, label),
                f"Lines of {label.lower()} {span}, full text against latents.",
            )
            for key, label in (
                ("positions", "Decoder positions"),
                ("cache_bytes", "KV cache, bytes"),
                ("flops", "Prefill FLOPs"),
            )
        ]
        alt = f"Stacked bars of the FLOPs of encoder, adapter and decoder as a share of reading the full text, {span}."
        pictures.append(picture("", plots.plot_flop_parts(entries), alt))
        blocks += [
            element("h3", findings.upper_first(name)),
            element("div", *pictures, class_="pictures small"),
            table(
                ["context tokens", "positions", "with latents", "KV cache", "with latents", "FLOPs", "with latents",
                 "positions saved", "cache saved", "FLOPs saved"],
                [_cost_row(entry) for entry in entries],
            ),
        ]  # fmt: skip
    return section(
        "Cost of reading a context",
        element(
            "p",
            "Counted from the models' shapes, not measured: matrix products and attention of one forward pass over the context. "
            "“Saved” is full text divided by latents: 4× means a quarter is left, below 1× that compression costs more.",
        ),
        *blocks,
    )


def _cost_row(entry: Figures) -> list[str]:
    plain, compressed = entry["plain"], entry["compressed"]
    work, less = findings.total_flops(plain), findings.total_flops(compressed)
    return [
        f"{entry['tokens']:,}",
        f"{plain['positions']:,}",
        f"{compressed['positions']:,}",
        findings.byte_count(plain["cache_bytes"]),
        findings.byte_count(compressed["cache_bytes"]),
        f"{work:.2e}",
        f"{less:.2e}",
        f"{plain['positions'] / compressed['positions']:.1f}×",
        f"{plain['cache_bytes'] / compressed['cache_bytes']:.1f}×",
        f"{work / less:.2f}×",
    ]


def _samples(evaluation: Figures) -> Html:
    samples = evaluation["samples"]
    blocks = [
        element("h3", "Reconstruction, written from latents alone"),
        note("Words that differ are marked."),
    ]
    for sample in samples["reconstruction"]:
        original, written = mark_differences(sample["passage"], sample["written"])
        blocks.append(_beside(sample["source"], {"original": original, "written": written}))
    if samples["continuation"]:
        blocks.append(element("h3", "Continuation, the opening read as latents"))
    for sample in samples["continuation"]:
        quotes = {
            "opening": sample["opening"],
            "what followed": sample["truth"],
            "written": sample["written"],
        }
        blocks.append(_beside(sample["source"], quotes))
    questions = samples["questions"]
    shown = questions[:SHOWN]
    if questions:
        number = evaluation["questions"]["questions"]
        blocks += [
            element("h3", "Questions"),
            note(f"The first {len(shown)} of {number}, not chosen."),
        ]
    for sample in shown:
        answers = [["truth", sample["answer"]]] + [
            [plots.VIEW_NAMES[view], _answer(sample, view)] for view in VIEWS
        ]
        blocks.append(
            element(
                "div",
                element("p", sample["question"]),
                element(
                    "div",
                    element("div", sample["context"], class_="quote"),
                    _answers(answers),
                    class_="beside",
                ),
                class_="sample",
            )
        )
    return section("Samples", *blocks)


def _limits(config: Figures, run: History, evaluation: Figures | None) -> Html:
    words = []
    if run.stages:
        seconds = findings.training_seconds(run.stages, config["data"])
        tokens = findings.big_count(findings.trained_tokens(run.stages))
        words.append(f"It was trained on {tokens} tokens in {findings.duration(seconds)}.")
    if evaluation is None:
        blocks = [_missing("evaluation.json", "what it can do has not been measured")]
    else:
        sizes = evaluation["parameters"]
        words.insert(0, f"The model has {sum(sizes.values()):,} parameters.")
        blocks = [
            bullets(
                [
                    *(findings.judge(item) for item in findings.compare(evaluation)),
                    *findings.judge_lengths(evaluation["reconstruction"]),
                    *findings.judge_ratios(evaluation["reconstruction"]),
                    *(findings.judge_continuation(entry) for entry in evaluation["continuation"]),
                ]
            ),
            note(
                "“Clearly” means that the 95 % intervals do not overlap. A decoder that reads both is given no "
                "more by latents than by the full text; one that was trained on latents alone may read nothing else."
            ),
        ]
    return section(
        "What a model of this size can and cannot do", element("p", " ".join(words)), *blocks
    )


def _files(config: Figures, evaluation: Figures | None, round_trip: Figures | None) -> Html:
    blocks = [element("h3", "Round trip")]
    if round_trip is None:
        blocks.append(_missing("round_trip.json", "the model has not been exported and read back"))
    else:
        same = "the same logits, bit for bit" if round_trip["identical"] else "not the same logits"
        difference = f"largest difference {round_trip['largest_logit_difference']:.3g}"
        blocks.append(
            element(
                "p",
                f"Exported {round_trip['tensors']:,} tensors ({findings.byte_count(round_trip['bytes'])}) to ",
                element("code", round_trip["directory"]),
                f" and read back: {same}, {difference}.",
            )
        )
    blocks.append(element("h3", "Sizes"))
    model = config["model"]
    fields = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp")
    blocks.append(table(["tower", *(field.replace("_", " ") for field in fields)],
        [[tower, *(f"{model[tower][field]:,}" for field in fields)] for tower in ("encoder", "decoder")]))  # fmt: skip
    compression = model["compression"]
    blocks.append(
        element(
            "p",
            f"{compression['ratio']} tokens per latent, windows of {compression['window']} tokens, "
            f"{compression['pooling']} pooling, overlap {compression['overlap']}.",
        )
    )
    if evaluation is not None:
        sizes = evaluation["parameters"]
        blocks.append(
            table(["part", "parameters"], [[part, f"{count:,}"] for part, count in sizes.items()])
        )
        duration = findings.duration(evaluation["seconds"])
        blocks.append(
            note(
                f"Evaluated at step {evaluation['step']:,}, {duration} after the start of the command that did it."
            )
        )
    settings = element("div", json.dumps(config, indent=2), class_="quote")
    blocks.append(element("details", element("summary", "The run's config"), settings))
    return section("Round trip, sizes and settings", *blocks)


def _missing(name: str, consequence: str) -> Html:
    return element(
        "p",
        f"There is no {name} in this directory: {consequence}. It is made by ",
        element("code", MAKES_ALL),
        ".",
        class_="missing",
    )


def _about_intervals(more: str = "") -> Html:
    return note(f"In brackets, and as whiskers above, 95 % Wilson intervals. {more}".strip())


def _in_words(name: str, shares: Figures) -> str:
    return (
        f"{name}: "
        + ", ".join(f"{percent(shares[view]['value'])} {plots.VIEW_NAMES[view]}" for view in VIEWS)
        + "."
    )


def _beside(title: str, quotes: dict[str, str]) -> Html:
    columns = [
        element("div", element("div", label, class_="label"), element("div", text, class_="quote"))
        for label, text in quotes.items()
    ]
    return element(
        "div",
        element("div", title, class_="label"),
        element("div", *columns, class_="beside"),
        class_="sample",
    )


def _answer(sample: Figures, view: str) -> Html:
    answer = sample[f"from_{view}"]
    right = answer == sample["answer"]
    return element(
        "span",
        f"{'✓' if right else '✗'} {answer or '(empty)'}",
        class_="right" if right else "wrong",
    )


def _answers(rows: Sequence[Sequence[Any]]) -> Html:
    lines = [
        element("tr", element("th", name, scope="row"), element("td", cell)) for name, cell in rows
    ]
    return element("div", element("table", element("tbody", *lines), class_="answers"))
