"""Throughput by sync_period, as a picture."""

from collections.abc import Sequence

from slowmo_hvd.plan.report import Row


def draw(made: Sequence[Row], path: str) -> None:
    """Draw it.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    lines: dict[str, list[Row]] = {}
    for row in made:
        # The overlap is another at each period: one line all the same.
        kind = ", ".join(part.partition("=")[0] for part in row.way.split(", "))
        lines.setdefault(kind, []).append(row)
    for kind, of_kind in lines.items():
        throughputs = [row.throughput for row in of_kind]
        if of_kind[0].period:
            axes.plot([row.period for row in of_kind], throughputs, "o-", label=kind)
        else:
            color = "0.5" if "fp16" in kind else "0.1"
            axes.axhline(throughputs[0], label=kind, linestyle="--", color=color)
    axes.set(xscale="log", ylim=(0, 1.05), xlabel="sync_period")
    axes.set_ylabel("throughput over local steps")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
