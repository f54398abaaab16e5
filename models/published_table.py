"""Our figures beside the published ones, as a table for people."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from models.published import PUBLISHED_WEEK, PUBLISHED_WEEKS, TRAINING_WEEKS, Published


def published_table(found: Published) -> Table:
    """Each test week, the first beside the book's figures for it, then the mean over all beside the book's."""
    table = Table(
        title="by the Fraud Detection Handbook's protocol", title_justify="left", caption_justify="left", min_width=96
    )
    table.add_column("test week", no_wrap=True)
    for name in ("transactions", "frauds", "AUC", "avg. precision", "card prec.@100"):
        table.add_column(name, justify="right")
    for fold in found.folds:
        q = fold.figures
        values = _shown((q.auc, q.average_precision, q.card_precision_at_100))
        table.add_row(f"{fold.test_week}, here", f"{q.n_rows:,}", f"{q.n_frauds:,}", *values)
        if fold.training_week == TRAINING_WEEKS[0]:
            _add_published(table, f"{fold.test_week}, ", PUBLISHED_WEEK)
    if len(found.folds) == len(TRAINING_WEEKS):
        table.add_section()
        spread = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(found.mean, found.std, strict=True)]
        table.add_row("four weeks, here", "", "", *spread)
        _add_published(table, "four weeks, ", PUBLISHED_WEEKS)
    if found.warnings:
        table.caption = "\n".join(found.warnings)
    return table


def _add_published(table: Table, when: str, rows: Mapping[str, Sequence[float | None]]) -> None:
    for name, values in rows.items():
        table.add_row(when + name, "", "", *_shown(values))


def _shown(values: Sequence[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.3f}" for value in values]
