"""What was asked of the package, and what came out."""

from benchmarks.timing import ratio, summary

# what, loss, rows, dim, floor and aim of the time, floor of the memory
LOSS_GOALS = [
    ("NT-Xent, B 4096, D 128", "nt_xent", 4096, 128, 6.0, 8.0, 35.0),
    ("NT-Xent, B 1024, D 128", "nt_xent", 1024, 128, 2.8, 4.0, None),
    ("VICReg, B 256, D 2048", "vicreg", 256, 2048, 15.0, 20.0, None),
    ("SIGReg, B 4096, D 128, 256 slices", "sigreg", 4096, 128, 8.0, 20.0, 10.0),
]


def goals(spent: dict, rows: list[dict], found: dict) -> list[dict]:
    """The table of ratios, one thread; a line is left out where its sizes or lightly were not measured."""
    table = []
    for what, loss, n, dim, floor, aim, memory in LOSS_GOALS:
        times = spent.get((loss, n, dim, 1), {})
        if "lightly" not in times:
            continue
        line = {
            "what": what,
            "against": "lightly",
            **ratio(times["lightly"], times["fused"]),
            "floor": floor,
            "aim": aim,
        }
        # How much faster it would be with nothing but the products that it cannot do without.
        line["ratio_at_the_limit"] = ratio(times["lightly"], times["limit"])["ratio_best"]
        row = next(r for r in rows if (r["loss"], r["rows"], r["dim"], r["threads"]) == (loss, n, dim, 1))
        if peak := row.get("peak_bytes"):
            line["memory_ratio"] = float(f"{peak['lightly'] / peak['fused']:.4g}")
            line["memory_floor"] = memory
        table.append(line)
    for what, key, rival, floor, aim in (
        ("multi-block masks, 14 x 14", "masks", "lightly", 40.0, 100.0),
        ("AdamW and EMA, notebook size", "optimizer", "lightly", 3.0, 5.0),
    ):
        times = found[key]["spent"]
        if rival in times:
            table.append(
                {"what": what, "against": rival, **ratio(times[rival], times["ours"]), "floor": floor, "aim": aim}
            )
    for step in found["steps"]:
        times = step["spent"]
        asked = {"floor": 3.0, "aim": 5.0} if step["tokens"] == 16 else {"floor": None, "aim": None}
        what = f"JEPA step, {step['tokens']} tokens"
        table.append({"what": what, "against": "plain", **ratio(times["plain"], times["ours"]), **asked})
    return table


def report(one: dict) -> dict:
    """A race as it is stored: the sizes, and the summary of each contestant."""
    rest = {key: value for key, value in one.items() if key != "spent"}
    return rest | {"times": {name: summary(times) for name, times in one["spent"].items()}}


def loss_lines(row: dict) -> str:
    times = " ".join(f"{name} {t['median_ms']:.4g}" for name, t in row["times"].items())
    return f"{row['loss']:9} B {row['rows']:5} D {row['dim']:5} threads {row['threads']}  ms: {times}"
