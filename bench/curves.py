"""Draws how cost grows, from the rows that `compare.py` measures."""

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "upgrayedd"

import matplotlib.pyplot as plt  # noqa: E402


def draw(rows, path):
    """Time and memory against sequence length, depth and threads, as a picture."""
    base = {"depth": 6, "length": 256, "threads": 2}
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), sharey="row")
    for column, (axis, label) in enumerate([("length", "sequence length, tokens"), ("depth", "layers"), ("threads", "threads")]):
        others = {key: value for key, value in base.items() if key != axis}
        chosen = sorted((r for r in rows if all(r[k] == v for k, v in others.items())), key=lambda r: r[axis])
        at = [row[axis] for row in chosen]
        for work, marker in (("forward", "o"), ("train", "s")):
            panels[0][column].plot(at, [row["us_per_token"][work] for row in chosen], marker=marker, label=work)
            panels[1][column].plot(at, [row["peak_rss_mib"][work] for row in chosen], marker=marker, label=work)
        panels[1][column].set_xlabel(label)
        for panel in (panels[0][column], panels[1][column]):
            panel.set_xscale("log", base=2)
            panel.set_xticks(at, [str(value) for value in at])
            panel.grid(alpha=0.3)
    for panel in (panels[0][0], panels[1][0]):
        # The panels of a row share their scale, which is fixed once everything is drawn.
        panel.set_ylim(bottom=0)
    panels[0][0].set_ylabel("µs per token")
    panels[1][0].set_ylabel("peak memory, MiB")
    panels[0][0].legend()
    figure.suptitle("Small decoder (384 wide), 2048 tokens a batch")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
