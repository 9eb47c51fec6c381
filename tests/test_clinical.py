"""Records of the PhysioNet 2012 format: what is read, left out and counted, or refused; and the generator."""

import io
import os
import tarfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from jepa_lab.data import clinical
from jepa_lab.data.clinical import DESCRIPTORS, HEADER, OUTCOME_HEADER, PARAMETERS, physionet2012, read_records
from jepa_lab.data.clinical_generator import CHANNELS, FEW, GeneratorConfig, generate, write_records

DESCRIBED = ["00:00,RecordID,7", "00:00,Age,54", "00:00,Gender,0", "00:00,Height,-1", "00:00,ICUType,4"]


def write(folder, **records):
    """Files `NUMBER.txt` from `r7=[rows]`, under the header."""
    folder.mkdir(exist_ok=True)
    for name, rows in records.items():
        text = rows if isinstance(rows, str) else "\n".join([HEADER, *rows, ""])
        (folder / f"{name[1:]}.txt").write_text(text)
    return folder


def observations(records, stay=0):
    """The rows of one stay as (hours, name, value)."""
    where = slice(int(records.start[stay]), int(records.start[stay + 1]))
    columns = (records.time[where].tolist(), records.feature[where].tolist(), records.value[where].tolist())
    return [(round(t, 4), PARAMETERS[f], round(v, 4)) for t, f, v in zip(*columns, strict=True)]


def test_rows_become_observations_and_descriptors(tmp_path):
    rows = [*DESCRIBED, "00:00,Weight,80.5", "00:07,HR,73", "01:30,Temp,36.5", "48:00,Weight,79"]
    records = read_records(write(tmp_path / "a", r7=rows))
    assert records.name == ("7",) and len(records) == 1 and records.skipped == {}
    assert observations(records) == [(0.1167, "HR", 73.0), (1.5, "Temp", 36.5), (48.0, "Weight", 79.0)]
    known = dict(zip(DESCRIPTORS, records.static[0].tolist(), strict=True))
    assert (known["Age"], known["Gender"], known["ICUType"], known["Weight"]) == (54, 0, 4, 80.5)
    assert records.static[0].isnan().tolist() == [False, False, True, False, False]  # the height is not known


def test_descriptors_stand_anywhere_among_the_rows_of_the_first_minute(tmp_path):
    rows = ["00:00,RecordID,7", "00:00,Age,54", "00:00,ICUType,2", "00:00,pH,7.4", "00:00,Gender,1", "00:00,HR,90"]
    rows += ["00:00,Height,170", "00:00,Weight,70", "00:00,Weight,71", "00:05,Weight,72"]
    records = read_records(write(tmp_path / "a", r7=rows))
    assert records.static[0].tolist() == [54, 1, 170, 2, 70]
    # A second weight at 00:00 is an observation.
    assert observations(records) == [(0, "HR", 90.0), (0, "Weight", 71.0), (0, "pH", 7.4), (0.0833, "Weight", 72.0)]


def test_repeated_rows_are_averaged_and_counted(tmp_path):
    rows = [*DESCRIBED, "00:07,HR,70", "00:07,HR,80", "00:07,HR,90", "00:08,HR,100", "00:07,Temp,37"]
    records = read_records(write(tmp_path / "a", r7=rows, r8=["00:07,HR,60"]))
    assert observations(records) == [(0.1167, "HR", 80.0), (0.1167, "Temp", 37.0), (0.1333, "HR", 100.0)]
    assert observations(records, 1) == [(0.1167, "HR", 60.0)]
    assert records.skipped == {"repeated (time, parameter), averaged": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("00:07,HR", "malformed row"),
        ("00:07,HR,70,1", "malformed row"),
        ("00:07,HR,fast", "malformed row"),
        ("7 am,HR,70", "malformed row"),
        ("12:61,HR,70", "malformed row"),
        ("garbage", "malformed row"),
        ("48:01,HR,70", "time beyond 48 h"),
        ("123:00,HR,70", "time beyond 48 h"),
        ("00:07,Aura,70", "unknown parameter"),
        ("00:07,,70", "unknown parameter"),
        ("00:07,Weight,-1", "unknown value (-1)"),
        ("00:07,Temp,-17.8", "impossible value"),
        ("00:07,pH,735", "impossible value"),
        ("00:07,K,-4", "impossible value"),
        ("00:07,HR,nan", "impossible value"),
        ("00:07,HR,inf", "impossible value"),
        ("00:00,Weight,700", "impossible descriptor"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_counted(row, reason, tmp_path):
    records = read_records(write(tmp_path / "a", r7=[*DESCRIBED, row, "01:00,HR,71"]))
    assert records.skipped == {reason: 1}
    assert observations(records) == [(1.0, "HR", 71.0)] and records.value.isfinite().all()


def test_files_that_are_no_records_are_counted_and_empty_records_stay(tmp_path):
    folder = write(tmp_path / "a", r7=[*DESCRIBED], r8="", r9="Zeit,Wert\n1,2\n", r10=["01:00,HR,70"], r11=["", "  "])
    (folder / "notes.txt").write_text("not a record")
    records = read_records(folder)
    assert records.name == ("10", "11", "7") and records.count.tolist() == [1, 0, 0]
    assert records.skipped == {"empty file": 1, "file with another header": 1}
    assert records.static[0].isnan().all()  # nothing is known of this one, and that is no fault
    windows = write(tmp_path / "b", r7="\r\n".join([HEADER, *DESCRIBED, "01:00,HR,70", ""]))
    assert observations(read_records(windows)) == [(1.0, "HR", 70.0)]


def test_a_tarball_and_its_folder_are_read_alike(tmp_path):
    folder = write(tmp_path / "set-a", r9=[*DESCRIBED, "01:00,HR,70"], r8=[*DESCRIBED, "02:00,HR,71", "02:00,K,4"])
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(folder, "set-a")
        other = tarfile.TarInfo("set-a/README.txt")
        archive.addfile(other, io.BytesIO())
    one, two = read_records(folder), read_records(tmp_path / "set.tar.gz")
    assert one.name == two.name == ("8", "9")
    assert torch.equal(one.value, two.value) and torch.equal(one.start, two.start)


def test_a_wrong_tarball_is_an_error_that_names_it(tmp_path):
    for name, content in {"text.tar.gz": b"no tarball", "empty.tar.gz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is neither a folder of records nor a tarball .*physionet.org"):
            read_records(tmp_path / name)
    whole = write(tmp_path / "set-a", **{f"r{i}": [*DESCRIBED, f"01:00,HR,{60 + i}"] for i in range(50)})
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(whole, "set-a")
    payload = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(payload[: len(payload) // 2])
    with pytest.raises(ValueError, match=r"half.tar.gz is neither a folder of records nor a tarball"):
        read_records(tmp_path / "half.tar.gz")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "text.tar.gz", "some/file")
    with pytest.raises(ValueError, match=r"other.tar.gz holds no record: no RECORDID.txt with the header 'Time"):
        read_records(tmp_path / "other.tar.gz")
    with pytest.raises(ValueError, match=r"missing.tar.gz is neither"):
        read_records(tmp_path / "missing.tar.gz")


def test_outcomes_are_joined_by_the_number_of_the_record(tmp_path):
    folder = write(tmp_path / "a", r7=DESCRIBED, r8=DESCRIBED, r9=DESCRIBED)
    table = tmp_path / "Outcomes-a.txt"
    table.write_text("\n".join([OUTCOME_HEADER, "9,16,8,12,3,1", "7,-1,1,5,-1,0", "77,1,1,1,1,1", "8,x,1,1,1,1", ""]))
    records = read_records(folder, table)
    assert records.label.tolist() == [0, -1, 1]
    assert records.skipped == {"malformed outcome": 1, "record without outcome": 1}
    assert records.factors["saps"][2] == 16 and records.factors["saps"][:2].isnan().all()
    assert records.factors["length_of_stay"].nan_to_num(-9).tolist() == [5, -9, 12]
    table.write_text("RecordID,Death\n7,0\n")
    with pytest.raises(ValueError, match=r"must start with 'RecordID,SAPS-I.*got 'RecordID,Death'"):
        read_records(folder, table)
    assert read_records(folder).label.tolist() == [-1, -1, -1]


def test_stays_are_taken_whole_in_the_asked_order(tmp_path):
    rows = {f"r{i}": [*DESCRIBED, *(f"{h:02d}:00,HR,{10 * i + h}" for h in range(1, i + 1))] for i in (1, 2, 3)}
    records = read_records(write(tmp_path / "a", **rows))
    taken = records.take(torch.tensor([2, 0, 2]))
    assert taken.name == ("3", "1", "3") and taken.count.tolist() == [3, 1, 3]
    assert taken.value.tolist() == [31, 32, 33, 11, 31, 32, 33]
    assert taken.row.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert len(records.take(torch.tensor([], dtype=torch.long)).value) == 0


# --- where the real set is looked for --------------------------------------------------------------------------------


def test_a_missing_set_names_its_page_and_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("JEPA_LAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"physionet.org/content/challenge-2012.*set the environment variable"):
        physionet2012()
    with pytest.raises(ValueError, match="no folder to download to"):
        physionet2012(download=True)
    with pytest.raises(FileNotFoundError, match=r"set-a.tar.gz, Outcomes-a.txt not found in .*physionet2012"):
        physionet2012(tmp_path)
    with pytest.raises(ValueError, match="part must be a, b or c, got 'd'"):
        physionet2012(tmp_path, part="d")


@pytest.mark.parametrize("place", ["physionet2012", "."])
def test_archives_and_unpacked_folders_are_found(place, tmp_path):
    records = generate(5, config=GeneratorConfig(channels=("HR", "K")))
    write_records(records, tmp_path / place)
    found = physionet2012(tmp_path)
    assert found.name == records.name
    with tarfile.open(tmp_path / place / "set-a.tar.gz") as archive:
        archive.extractall(tmp_path / place, filter="data")
    (tmp_path / place / "set-a.tar.gz").unlink()
    assert torch.equal(physionet2012(tmp_path).value, found.value)


def test_a_download_fetches_what_is_missing_and_leaves_nothing_half(tmp_path, monkeypatch):
    write_records(generate(3, config=GeneratorConfig(channels=("HR",))), tmp_path / "page")
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return (tmp_path / "page" / url.rpartition("/")[2]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    assert len(physionet2012(tmp_path, download=True)) == 3 and len(asked) == 2
    assert all(url.startswith(clinical.FILES) for url in asked)
    assert len(physionet2012(tmp_path, download=True)) == 3 and len(asked) == 2
    assert sorted(path.name for path in (tmp_path / "physionet2012").iterdir()) == ["Outcomes-a.txt", "set-a.tar.gz"]


REAL = Path(os.environ.get("JEPA_LAB_DATA", "")) / "physionet2012" / "set-a.tar.gz"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="PhysioNet 2012 set A is not in JEPA_LAB_DATA")
def test_set_a_is_read_whole_and_in_time():
    start = time.process_time()
    records = physionet2012()
    seconds = time.process_time() - start
    assert len(records) == 4000 and records.label.sum() == 554 and (records.label >= 0).all()
    assert seconds < 10
    empty = [records.name[i] for i in (records.count == 0).nonzero().flatten().tolist()]
    assert empty == ["140501", "140936", "141264"]
    assert records.count.median() == 421
    known = dict(zip(DESCRIPTORS, records.static.isnan().sum(0).tolist(), strict=True))
    assert known["ICUType"] == known["Age"] == 0 and known["Gender"] == 3  # also in the 90 that mix their rows
    for name, channel in CHANNELS.items():
        if name == "Weight":  # the table counts the weight at admission, which is a descriptor, as an observation
            continue
        here = records.feature == PARAMETERS.index(name)
        count = torch.bincount(records.row[here], minlength=4000)
        assert (count > 0).float().mean().item() == pytest.approx(channel.share, abs=0.012), name
        assert count[count > 0].median() == pytest.approx(channel.count, abs=1), name


# --- the generator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stays():
    return generate(3000, seed=1)


def test_rates_counts_and_percentiles_follow_the_real_set(stays):
    """Quartiles to a third of the distance between them, on a logarithmic axis."""
    for name, channel in CHANNELS.items():
        here = stays.feature == PARAMETERS.index(name)
        count = torch.bincount(stays.row[here], minlength=len(stays))
        assert (count > 0).float().mean().item() == pytest.approx(channel.share, abs=0.03), name
        assert count[count > 0].float().median().item() == pytest.approx(channel.count, abs=1.1), name
        if (count > 0).sum() < 500:
            continue
        found = stays.value[here].quantile(torch.tensor([0.25, 0.5, 0.75])).log1p()
        wanted = torch.tensor(channel.percentiles[1:4], dtype=torch.float32).log1p()
        step = 10.0**-channel.digits / (1 + channel.percentiles[2])  # values are rounded
        apart = (found - wanted).abs().max().item()
        assert apart < 0.34 * (wanted[2] - wanted[0]).item() + step, name
        low, _, _, _, high = channel.percentiles
        assert low <= stays.value[here].min() and stays.value[here].max() <= high
    assert 300 < stays.count.float().median() < 550
    assert stays.label.float().mean().item() == pytest.approx(0.139, abs=0.02)


def test_channels_of_a_panel_come_together_and_times_are_sorted(stays):
    def has(name):
        return torch.bincount(stays.row[stays.feature == PARAMETERS.index(name)], minlength=len(stays)) > 0

    assert (has("pH") == has("PaCO2")).float().mean() > 0.98
    assert (has("pH") == has("Albumin")).float().mean() < 0.7
    assert ((stays.time.diff() >= 0) | (stays.row.diff() > 0)).all()
    assert stays.time.min() >= 0 and stays.time.max() <= 48
    gaps = stays.time[stays.feature == PARAMETERS.index("pH")].diff()
    assert 4 < gaps[gaps > 0].median() < 12


def test_a_seed_gives_the_same_stays_and_another_seed_others():
    config = GeneratorConfig(channels=FEW, density=0.5)
    one, same, other = generate(50, 3, config), generate(50, 3, config), generate(50, 4, config)
    assert torch.equal(one.value, same.value) and torch.equal(one.label, same.label)
    assert not torch.equal(one.factors["severity"], other.factors["severity"])


def level(records, name):
    """Mean of a channel in each stay that has it, and which these are."""
    here = records.feature == PARAMETERS.index(name)
    count = torch.bincount(records.row[here], minlength=len(records))
    total = torch.bincount(records.row[here], records.value[here].double(), minlength=len(records))
    return (total / count.clamp(min=1))[count > 0], count > 0


def test_the_dial_takes_death_out_of_the_levels():
    """With w = 0 a single level tells of severity, with w = 1 only its distance from the middle does."""
    for w in (0.0, 1.0):
        records = generate(3000, 0, GeneratorConfig(channels=("Temp", "SysABP"), two_sided=w, density=0.3))
        value, here = level(records, "Temp")
        severity = records.factors["severity"][here].double()
        linear = torch.corrcoef(torch.stack([value, severity]))[0, 1].abs()
        distance = (value - value.median()).abs()
        bent = torch.corrcoef(torch.stack([distance, severity]))[0, 1]
        assert (linear > 0.5) == (w == 0.0) and (linear < 0.1) == (w == 1.0)
        assert (bent > 0.25) == (w == 1.0)
        assert 0.8 < roc_auc_score(records.label.numpy(), records.factors["severity"].numpy()) < 0.92


def test_the_trend_is_in_the_values():
    records = generate(2000, 0, GeneratorConfig(channels=("HR",), trend=1.5, noise=0.1))
    late = records.time > 24
    means = []
    for half in (late, ~late):
        count = torch.bincount(records.row[half], minlength=len(records))
        means.append(torch.bincount(records.row[half], records.value[half].double(), minlength=len(records)) / count)
    drift, known = means[0] - means[1], (means[0] - means[1]).isfinite()
    slope = records.factors["trend"].double()
    assert torch.corrcoef(torch.stack([drift[known], slope[known]]))[0, 1].abs() > 0.9


def test_what_is_written_is_read(tmp_path):
    records = generate(12, 5)
    write_records(records, tmp_path)
    found = read_records(tmp_path / "set-a.tar.gz", tmp_path / "Outcomes-a.txt")
    assert found.name == records.name and torch.equal(found.label, records.label)
    assert found.skipped == {} and torch.equal(found.start, records.start)
    for column in ("time", "feature", "value"):
        torch.testing.assert_close(getattr(found, column), getattr(records, column), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.static, records.static, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert found.factors["saps"].isnan().all() and "severity" not in found.factors
    write_records(replace(records, name=tuple(f"{i}" for i in range(12))), tmp_path, "b")
    assert (tmp_path / "set-b.tar.gz").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ("HR", "Aura")}, r"channels must be one or more of HR, .* got \['Aura'\]"),
        ({"channels": ()}, "got none"),
        ({"two_sided": 1.5}, r"two_sided must lie in \[0, 1\], got 1.5"),
        ({"density": 0.0}, "density must be positive, got 0"),
        ({"noise": -1.0}, "noise must be a standard deviation, got -1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**settings)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        generate(0)
