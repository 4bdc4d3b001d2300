"""The catalogue: what it says, what loading checks, and how a download may fail."""

import gzip
import hashlib
import http.server
import io
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from data_helpers import FOLDER, needs
from seqrec_lib.data import DATASETS, DatasetInfo, load_dataset, loading
from seqrec_lib.data.catalogue import DataFile, Source, Titles

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no other folder."""
    monkeypatch.setenv("SEQREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEQREC_DATA", raising=False)
    return tmp_path / "cache"


def put(folder, path, content):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return target


# ---- the catalogue -------------------------------------------------------------------------


def files(info):
    for source in info.sources:
        yield from filter(None, [source.log, source.titles and source.titles.file, source.item_map])


@pytest.mark.parametrize("info", DATASETS.values(), ids=DATASETS.keys())
def test_the_catalogue_is_complete(info):
    assert info.family == next((w for w in ("Amazon", "MovieLens") if w in info.title), "")
    assert set(info.statistics) == {"users", "items", "interactions"}
    assert info.homepage.startswith("https://") and info.licence and info.citation and info.note
    for file in files(info):
        assert not file.urls or file.sha256 or file.archive_sha256, "fetched, but not checked"
        assert all(url.startswith("https://") for url in file.urls)
        assert all(len(h) == 64 for h in (file.sha256, file.archive_sha256) if h)
    assert info.by_hand or any(source.log.urls for source in info.sources)


def test_the_publishers_address_comes_first():
    first = {name: info.sources[0].log.urls[:1] for name, info in DATASETS.items()}
    assert first["ml-1m"] == ("https://files.grouplens.org/datasets/movielens/ml-1m.zip",)
    assert first["toys"][0].startswith("https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/")
    assert first["anime"] == ()


def test_timestamps_are_announced():
    without = {name for name, info in DATASETS.items() if not info.timestamps}
    assert without == {
        "beauty", "sports", "toys", "yelp", "lastfm", "beauty-sasrec", "video-sasrec", "anime",
    }  # fmt: skip


# ---- the real files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs(DATASETS[name].sources[-1].log.path))
        for name in DATASETS
        if name not in ("ml-20m", "anime")
    ],
)
def test_published_statistics(name):
    inter = load_dataset(name, FOLDER)  # a file that differs would warn, and fail here
    assert {k: inter.statistics[k] for k in DATASETS[name].statistics} == DATASETS[name].statistics
    if name != "ml-1m":  # has them or not, by the file that is there
        assert inter.has_timestamps == DATASETS[name].timestamps
    assert (inter.item_names is not None) == name.startswith("ml-")


@needs("ml-100k/u.item", "ml-latest-small/movies.csv")
def test_titles():
    inter = load_dataset("ml-100k", FOLDER)
    titles = dict(zip(inter.item_ids.tolist(), inter.item_names, strict=True))
    assert titles[50] == "Star Wars (1977)"
    assert titles[543] == "Misérables, Les (1995)"  # latin-1
    inter = load_dataset("ml-latest-small", FOLDER)
    titles = dict(zip(inter.item_ids.tolist(), inter.item_names, strict=True))
    assert titles[11] == "American President, The (1995)"  # quoted, with a comma


ML_1M = ("ml-1m/ratings.csv.gz", "ml-1m/movies.dat", "ml-1m/sas_to_original_items.txt")


@needs("kang-sasrec/ml-1m.txt", *ML_1M)
def test_ml_1m_is_the_same_from_the_authors_file_and_from_the_ratings(tmp_path):
    rows = gzip.decompress((FOLDER / ML_1M[0]).read_bytes()).decode().splitlines()[1:]
    ratings = "\n".join("::".join(row.split(",")[:4]) for row in rows)  # the publisher's format
    put(tmp_path / "publisher", "ml-1m/ratings.dat", ratings)
    for file in ("kang-sasrec/ml-1m.txt", ML_1M[2]):
        put(tmp_path / "authors", file, (FOLDER / file).read_bytes())
    for folder in ("publisher", "authors"):
        put(tmp_path / folder, ML_1M[1], (FOLDER / ML_1M[1]).read_bytes())

    raw, authors, copy = (
        load_dataset("ml-1m", folder)
        for folder in (tmp_path / "publisher", tmp_path / "authors", FOLDER)
    )
    for other in (authors, copy):
        assert np.array_equal(raw.sequences.values, other.sequences.values)
        assert np.array_equal(raw.sequences.offsets, other.sequences.offsets)
        assert np.array_equal(raw.item_ids, other.item_ids)
        assert np.array_equal(raw.item_names, other.item_names)
    assert np.array_equal(raw.timestamps, copy.timestamps)
    assert not authors.has_timestamps
    assert raw.dropped == {"items below five ratings": 1_000_209 - 999_611}


def test_python_2_orders_its_dictionaries_so():
    assert loading.python2_dict_order("abc") == ["a", "c", "b"]
    assert sorted(loading.python2_dict_order(map(str, range(99)))) == sorted(map(str, range(99)))


# ---- what cannot be fetched here, in the publishers' formats -----------------------------------


def test_ml_20m_format(tmp_path):
    ratings = """userId,movieId,rating,timestamp
1,29,3.5,1112484676
1,2,3.5,1112486027
2,3,4.0,974820889
"""
    movies = """movieId,title,genres
2,Jumanji (1995),Adventure|Children|Fantasy
3,Grumpier Old Men (1995),Comedy|Romance
29,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Adventure|Drama
"""
    put(tmp_path, "ml-20m/ratings.csv", ratings)
    put(tmp_path, "ml-20m/movies.csv", movies)
    with pytest.warns(UserWarning, match="2 users, not 138,493.*3 items, not 26,744"):
        inter = load_dataset("ml-20m", tmp_path)
    assert [[inter.describe_item(i) for i in s] for s in inter.sequences] == [
        ["City of Lost Children, The (Cité des enfants perdus, La) (1995)", "Jumanji (1995)"],
        ["Grumpier Old Men (1995)"],
    ]
    assert inter.timestamps.tolist() == [1112484676, 1112486027, 974820889]


def test_anime_format_keeps_the_order_of_the_rows(tmp_path):
    anime = """anime_id,name,genre,type,episodes,rating,members
20,Naruto,"Action, Comedy",TV,220,7.81,683297
226,Elfen Lied&deg;,"Drama, Horror",TV,13,7.85,623511
"""
    put(tmp_path, "anime/rating.csv", "user_id,anime_id,rating\n1,226,-1\n1,20,10\n2,20,7\n")
    put(tmp_path, "anime/anime.csv", anime)
    with pytest.warns(UserWarning, match="not the published MyAnimeList"):
        inter = load_dataset("anime", tmp_path)
    titles = [[inter.describe_item(i) for i in s] for s in inter.sequences]
    assert titles == [["Elfen Lied°", "Naruto"], ["Naruto"]]
    assert not inter.has_timestamps


def test_what_kaggle_keeps_is_asked_for_by_hand(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("anime", tmp_path)
    assert "Kaggle wants an account" in str(error.value)
    assert str(tmp_path / "anime" / "rating.csv") in str(error.value)
    with pytest.raises(ValueError, match="no data set 'anima'; there are ml-100k"):
        load_dataset("anima")


# ---- the cache -----------------------------------------------------------------------------

LOG = "1 3 1 2\n2 2 3\n"
HASH = hashlib.sha256(LOG.encode()).hexdigest()
SEQUENCES = {"layout": "sequences", "sep": " "}


def made(log, titles=None, statistics=(2, 3, 5)):
    """A data set of two users for the catalogue."""
    names = ("users", "items", "interactions")
    return DatasetInfo("made", "Made", "https://made.example", "none", "nobody",
                       dict(zip(names, statistics, strict=True)),
                       (Source(log, SEQUENCES, titles),))  # fmt: skip


def sequences(inter):
    return [s.tolist() for s in inter.sequences]


def parsed(cache):
    (path,) = (cache / "parsed").iterdir()
    return path


def test_the_second_load_does_not_parse(tmp_path, cache, monkeypatch):
    titles = Titles(DataFile("titles.txt"), sep="|", encoding="utf-8")
    put(tmp_path, "made.txt", LOG)
    put(tmp_path, "titles.txt", "1|Amélie\n2|二\n3|three")
    info = made(DataFile("made.txt"), titles)
    first = loading._load(info, tmp_path)
    monkeypatch.setattr(loading, "_parse", None)
    again = loading._load(info, tmp_path)
    assert sequences(first) == sequences(again) == [[3, 1, 2], [2, 3]]
    assert again.item_names.tolist() == ["", "Amélie", "二", "three"]
    for what in ("user_ids", "item_ids", "name", "dropped", "num_items"):
        assert np.array_equal(getattr(first, what), getattr(again, what))


def test_a_changed_file_is_parsed_anew(tmp_path):
    info = made(DataFile("made.txt"))
    put(tmp_path, "made.txt", LOG)
    loading._load(info, tmp_path)
    put(tmp_path, "made.txt", "1 3 1 2\n2 3 2\n")
    assert sequences(loading._load(info, tmp_path)) == [[3, 1, 2], [3, 2]]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "one byte": lambda data: data[:300] + b"x" + data[301:],
    "zeros": lambda data: data[:60] + bytes(40) + data[100:],
    "no zip": lambda data: b"not a zip",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_noticed_and_made_anew(tmp_path, cache, damage):
    put(tmp_path, "made.txt", LOG)
    info = made(DataFile("made.txt"))
    loading._load(info, tmp_path)
    path = parsed(cache)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged.*made anew"):
        assert sequences(loading._load(info, tmp_path)) == [[3, 1, 2], [2, 3]]
    loading._load(info, tmp_path)  # without a warning


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    put(tmp_path, "made.txt", LOG)
    monkeypatch.setenv("SEQREC_CACHE", str(tmp_path / "made.txt" / "below a file"))
    assert loading._load(made(DataFile("made.txt")), tmp_path).num_users == 2


def test_a_title_may_hold_what_ends_a_line_elsewhere(tmp_path):
    put(tmp_path, "made.txt", LOG)
    put(tmp_path, "titles.txt", "1|B\x85C\n2|two\r\n3|three\n".encode("latin-1"))
    titles = Titles(DataFile("titles.txt"), sep="|", encoding="latin-1")
    inter = loading._load(made(DataFile("made.txt"), titles), tmp_path)
    assert [str(name) for name in inter.item_names[1:]] == ["B\x85C", "two", "three"]


@pytest.mark.parametrize(("sep", "damaged"), [("|", "<html>"), (",", '1,"' + "x" * 140_000)])
def test_damaged_titles_are_named_and_done_without(tmp_path, sep, damaged):
    put(tmp_path, "made.txt", LOG)
    put(tmp_path, "titles.txt", damaged)
    info = made(DataFile("made.txt"), Titles(DataFile("titles.txt"), sep=sep))
    with pytest.warns(UserWarning, match=r"titles\.txt is damaged .* Delete it to fetch it anew"):
        inter = loading._load(info, tmp_path)
    assert inter.item_names is None and inter.num_items == 3


def test_a_file_that_differs_is_named(tmp_path):
    put(tmp_path, "made.txt", LOG)
    put(tmp_path, "titles.txt", "1|one")
    titles = Titles(DataFile("titles.txt", sha256="1" * 64), sep="|")
    info = made(DataFile("made.txt", sha256=HASH), titles, statistics=(2, 4, 5))
    with pytest.warns(UserWarning) as caught:
        loading._load(info, tmp_path)
    (message,) = (str(warning.message) for warning in caught)
    assert "made.txt is not the published Made: 3 items, not 4; SHA-256 of titles.txt" in message


# ---- downloading ---------------------------------------------------------------------------


@pytest.fixture
def server():
    """A local server: /good, /short (cut off), /wrong, /zip, and 404; ``server.asked`` counts."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("made/log.txt", LOG)

    class Handler(http.server.BaseHTTPRequestHandler):
        bodies = {"/good": LOG.encode(), "/short": LOG[:6].encode(), "/wrong": b"<html>busy</html>",
                  "/made.zip": packed.getvalue()}  # fmt: skip

        def do_GET(self):
            self.server.asked.append(self.path)
            body = self.bodies.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header(
                "Content-Length", str(len(LOG) if self.path == "/short" else len(body))
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.root = [], f"http://127.0.0.1:{server.server_port}"
    server.zip_hash = hashlib.sha256(packed.getvalue()).hexdigest()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_is_checked_and_kept(server, cache):
    info = made(DataFile("made/log.txt", HASH, (f"{server.root}/good",)))
    assert sequences(loading._load(info, None)) == [[3, 1, 2], [2, 3]]
    loading._load(info, None)
    assert server.asked == ["/good"]
    assert (cache / "made/log.txt").read_text() == LOG


@pytest.mark.parametrize("first", ["/short", "/wrong", "/missing", "closed"])
def test_the_next_mirror_is_asked_when_one_fails(server, cache, first):
    address = "http://127.0.0.1:9/x" if first == "closed" else server.root + first
    info = made(DataFile("made/log.txt", HASH, (address, f"{server.root}/good")))
    assert loading._load(info, None).num_interactions == 5
    assert [p.name for p in (cache / "made").iterdir()] == ["log.txt"]  # no half file left


def test_when_every_mirror_fails_the_error_says_what_to_put_where(server, cache, tmp_path):
    urls = tuple(server.root + path for path in ("/short", "/wrong", "/missing"))
    with pytest.raises(FileNotFoundError) as error:
        loading._load(made(DataFile("made/log.txt", HASH, urls)), tmp_path)
    message = str(error.value)
    assert all(url in message for url in urls)
    assert "https://made.example" in message and str(tmp_path / "made" / "log.txt") in message
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_files_come_out_of_archives(server, cache):
    urls = (f"{server.root}/wrong", f"{server.root}/made.zip")
    file = DataFile("made/log.txt", None, urls, archive_sha256=server.zip_hash)
    assert loading._load(made(file), None).num_interactions == 5
    assert (cache / "made/log.txt").read_text() == LOG


def test_titles_that_cannot_be_had_are_done_without(tmp_path, server):
    put(tmp_path, "made.txt", LOG)
    titles = Titles(DataFile("titles.txt", "0" * 64, (f"{server.root}/missing",)), sep="|")
    with pytest.warns(UserWarning, match="going on without titles.txt"):
        inter = loading._load(made(DataFile("made.txt"), titles), tmp_path)
    assert inter.item_names is None


def test_two_processes_at_once(server, cache):
    script = f"""
from seqrec_lib.data import DatasetInfo, loading
from seqrec_lib.data.catalogue import DataFile, Source
log = DataFile("made/log.txt", {HASH!r}, ("{server.root}/good",))
info = DatasetInfo("made", "Made", "", "", "", {{}}, (Source(log, {SEQUENCES}),))
loaded = 0
for _ in range(50):  # each time as if for the first time
    for path in [loading.cache_dir() / log.path, *loading.cache_dir().glob("parsed/*.npz")]:
        path.unlink(missing_ok=True)
    try:
        inter = loading._load(info, None)
    except FileNotFoundError as error:  # the other one has just removed it
        continue
    assert [s.tolist() for s in inter.sequences] == [[3, 1, 2], [2, 3]]
    loaded += 1
assert loaded > 10, loaded
"""
    runs = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:
        error = run.communicate(timeout=120)[1].decode()
        assert run.returncode == 0, error[-2000:]


# ---- without pooch -------------------------------------------------------------------------


def test_data_that_is_there_needs_no_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delenv("SEQREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loading.cache_dir() == tmp_path / "seqrec_lib"
    with pytest.raises(FileNotFoundError, match="downloading needs pooch"):
        load_dataset("ml-100k")
    rows = "".join(f"{user}\t{item}\t5\t{item}\n" for user in (1, 2) for item in (1, 2, 3))
    put(tmp_path / "own", DATASETS["ml-100k"].sources[0].log.path, rows)
    with pytest.warns(UserWarning) as told:
        assert load_dataset("ml-100k", tmp_path / "own").num_interactions == 6
    assert any("without titles" in str(warning.message) for warning in told)
