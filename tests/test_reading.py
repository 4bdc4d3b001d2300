"""Reading logs: every layout, every flaw, and what no file may do to us."""

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec_lib.data import leave_one_out, read_interactions

pytestmark = pytest.mark.filterwarnings("error")
FAST = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path):
    def write(content, name="log.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def as_dict(inter):
    """{user id: [item id, ...]}"""
    return {
        user: [inter.item_ids[i] for i in items]
        for user, items in zip(inter.user_ids.tolist(), inter.sequences, strict=True)
    }


ROWS = "user_id,item_id,ts\nbob,x,3\nann,y,1\nbob,z,2\nann,x,1\n"
EXPECTED = {"ann": ["y", "x"], "bob": ["z", "x"]}  # by time; ann's tie keeps the file's order


# ---- layouts -----------------------------------------------------------------------------


@pytest.mark.parametrize("sep", [",", "\t", ";", "::", "|", " "])
def test_separators_are_recognised(write, capsys, sep):
    inter = read_interactions(write(ROWS.replace(",", sep)))
    assert as_dict(inter) == EXPECTED
    assert (
        "user = 'user_id', item = 'item_id', timestamp = 'ts' (guessed)" in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv"])
def test_gzip_is_known_by_its_bytes(write, name):
    assert as_dict(read_interactions(write(gzip.compress(ROWS.encode()), name))) == EXPECTED


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_parquet(tmp_path, name):
    rows = [line.split(",") for line in ROWS.split()]
    frame = pd.DataFrame(rows[1:], columns=rows[0]).astype({"ts": int})
    frame.to_parquet(tmp_path / name)
    inter = read_interactions(tmp_path / name)
    assert as_dict(inter) == EXPECTED
    assert list(inter.timestamps) == [1, 1, 2, 3]


def test_parquet_dates_integers_and_missing_values(tmp_path):
    path = tmp_path / "log.parquet"
    frame = pd.DataFrame({"user": [2, 1, 1], "item": [10.0, np.nan, 7.0]})
    frame["date"] = pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-03"])
    frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"row 1 \(from 0\).*no item.*on_bad_rows"):
        read_interactions(path)
    with pytest.warns(UserWarning, match="skipped 1 of 3 rows"):
        inter = read_interactions(path, on_bad_rows="skip")
    assert as_dict(inter) == {1: [7], 2: [10]}
    assert list(inter.timestamps) == [1578009600, 1577923200]


def test_parquet_types_that_are_no_ids_are_refused(tmp_path):
    pd.DataFrame({"user": [1], "item": [[1, 2]]}).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="log.parquet: column 'item' holds list.*is no item"):
        read_interactions(tmp_path / "log.parquet")


def test_given_columns_are_silent(write, capsys):
    path = write("when,who,what\n2,7,5\n1,7,6\n")
    inter = read_interactions(path, user="who", item="what", timestamp="when", title=False)
    assert as_dict(inter) == {7: [6, 5]}
    assert capsys.readouterr().out == ""
    inter = read_interactions(path, user="who", item="what", timestamp=False)
    assert as_dict(inter) == {7: [5, 6]}


def test_columns_by_number_without_a_header(write):
    path = write("7\t5\t4.0\t2\n7\t6\t3.0\t1\n", "u.data")
    assert as_dict(read_interactions(path, user=0, item=1, timestamp=3)) == {7: [6, 5]}


def test_columns_by_number_under_a_header(write, capsys):
    assert as_dict(read_interactions(write("userId,movieId\n7,5\n"), user=0, item=1)) == {7: [5]}
    assert "the first line names the columns (guessed)" in capsys.readouterr().out


def test_a_first_row_with_a_number_in_it_is_no_header(write, capsys):
    path = write("u1,Movie,5\nu1,Song,6\nu2,Song,7\n")
    inter = read_interactions(path, user=0, item=1, timestamp=2)
    assert as_dict(inter) == {"u1": ["Movie", "Song"], "u2": ["Song"]}
    assert capsys.readouterr().out == ""


def test_a_log_needs_users_and_items(write, tmp_path):
    path, parquet = write("7,5\n7,6\n"), tmp_path / "log.parquet"
    pd.DataFrame({"item": [1, 2]}).to_parquet(parquet)
    for wrong in (dict(user=False, layout="rows"), dict(item=False)):
        with pytest.raises(ValueError, match="a column of users and one of items"):
            read_interactions(path, **wrong)
    with pytest.raises(ValueError, match=r"log\.parquet is a Parquet file: it has rows"):
        read_interactions(parquet, user=False)
    with pytest.raises(ValueError, match="no encoding is called 'utf8x'"):
        read_interactions(path, encoding="utf8x")


def test_pairs_without_a_header_are_guessed_and_said(write, capsys):
    assert as_dict(read_interactions(write("1 5\n1 4\n2 5 \n", "pairs.txt"))) == {1: [5, 4], 2: [5]}
    assert "taken as user and item (guessed)" in capsys.readouterr().out


def test_a_sequence_per_line(write, capsys):
    path = write("1 5 4 5\n2 4\n3 9 9\n", "log.txt")
    inter = read_interactions(path)
    assert "whole sequence per line (guessed" in capsys.readouterr().out
    assert as_dict(inter) == {1: [5, 4, 5], 2: [4], 3: [9, 9]}
    assert as_dict(read_interactions(write("5,4,5\n4\n"), user=False)) == {1: [5, 4, 5], 2: [4]}
    one = read_interactions(write("1 5 4 5"), layout="sequences")
    assert as_dict(one) == {1: [5, 4, 5]}


def test_a_file_may_begin_with_the_letters_of_an_archive(write):
    inter = read_interactions(write("PK,user,item\n1,5,4\n2,5,3\n"))
    assert as_dict(inter) == {5: [4, 3]}


def test_quotes_of_a_tab_separated_file_are_none_of_its_values(write):
    inter = read_interactions(write('"user"\t"item"\n"10"\t"2"\n"10"\t"3"\n', "log.tsv"))
    assert as_dict(inter) == {10: [2, 3]}
    inter = read_interactions(write('user\titem\n1\ta"b\n1\tc\n', "log.tsv"))
    assert as_dict(inter) == {1: ['a"b', "c"]}


def test_what_a_layout_has_no_use_for_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="no columns, but item, timestamp= is given"):
        read_interactions(write("1 5 4\n"), item=1, timestamp=2, layout="sequences")
    pd.DataFrame({"user": [1], "item": [2]}).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="is a Parquet file"):
        read_interactions(tmp_path / "log.parquet", layout="sequences")


def test_what_cannot_be_guessed_is_asked_for(write):
    with pytest.raises(ValueError, match=r"no column could be guessed.*'who'.*Pass user="):
        read_interactions(write("who,what\n1,2\n"))
    with pytest.raises(ValueError, match="no column is called 'usr'"):
        read_interactions(write(ROWS), user="usr")
    with pytest.raises(ValueError, match="layout='sequences'"):
        read_interactions(write("1 2 3 4\n"))
    with pytest.raises(ValueError, match="on_bad_rows must be one of"):
        read_interactions(write(ROWS), on_bad_rows="ignore")


# ---- ids, times, titles --------------------------------------------------------------------


def test_integer_ids_are_ordered_by_value_and_text_by_code_point(write):
    inter = read_interactions(write("user,item\n10,b\n9,a\n10,Ä\n"))
    assert inter.user_ids.tolist() == [9, 10]
    assert inter.item_ids.tolist() == ["", "a", "b", "Ä"]


@pytest.mark.parametrize("id_", ["007", "12345678901234567890123", "0x10", "1e3", "-0", "1.0"])
def test_ids_that_are_not_plain_integers_stay_text(write, id_):
    inter = read_interactions(write(f"user,item\n{id_},5\n7,5\n"))
    assert sorted(inter.user_ids) == sorted([id_, "7"])


@pytest.mark.parametrize("id_", [2**63 - 1, -(2**63), 1234567890123456789])
def test_64_bit_integers_are_integers(write, id_):
    assert read_interactions(write(f"user,item\n{id_},5\n")).user_ids.tolist() == [id_]


def test_files_that_number_their_items_keep_their_numbers(write):
    inter = read_interactions(write("2 1 3\n5 2\n", "log.txt"))
    assert [list(s) for s in inter.sequences] == [[1, 3], [2]]


@pytest.mark.parametrize(
    "times, seconds",
    [
        (["3", "1"], [1, 3]),
        (["2.5", "1"], [1, 2.5]),
        (["-3", "-4"], [-4, -3]),
        (["2020-01-01 00:00:02", "2020-01-01T00:00:01+00:00"], [1577836801, 1577836802]),
        (["2020-01-02", "2020-01-01"], [1577836800, 1577923200]),
    ],
)
def test_times(write, times, seconds):
    inter = read_interactions(write("user,item,ts\n" + "".join(f"1,2,{t}\n" for t in times)))
    assert inter.timestamps.tolist() == seconds


def test_titles_in_any_script(write):
    rows = 'user,item,title\n1,5,"Amélie, 2001"\n1,6,千と千尋の神隠し\n2,5,other\n2,7,\n'
    inter = read_interactions(write(rows))
    assert inter.item_names.tolist() == ["", "Amélie, 2001", "千と千尋の神隠し", "7"]
    with pytest.raises(ValueError, match="line 2 is not utf-8.*encoding="):
        read_interactions(write(rows.split("千")[0].encode("latin-1") + b"x\n"))
    latin = read_interactions(write("user,item\n1,é\n".encode("latin-1")), encoding="latin-1")
    assert latin.describe_item(1) == "é"


def test_quotes_may_hold_separators_and_line_breaks(write):
    inter = read_interactions(write('user,item,title\n1,"a,\nb","two\nlines"\n2,c,""\n'))
    assert as_dict(inter) == {1: ["a,\nb"], 2: ["c"]}
    assert inter.item_names.tolist() == ["", "two\nlines", "c"]


def test_duplicates_are_kept_unless_dropped(write):
    path = write("user,item,ts\n1,5,1\n1,5,1\n1,5,2\n1,6,2\n")
    assert as_dict(read_interactions(path)) == {1: [5, 5, 5, 6]}
    inter = read_interactions(path, duplicates="drop")
    assert as_dict(inter) == {1: [5, 5, 6]}
    assert inter.dropped == {"duplicate rows": 1}


# ---- flaws -------------------------------------------------------------------------------

FLAWS = [
    ("user,item,ts\n1,2,3\n\n4,5\n6,7,8,9\n", 4, "4,5", "2 fields where 3 were expected"),
    ("user,item,ts\n1,2,3\n1,,3\n", 3, "1,,3", "no item"),
    ("user,item,ts\n ,2,3\n1,2,3\n", 2, " ,2,3", "no user"),
    ("\n\nuser,item,ts\n1,2,3\n1,,3\n", 5, "1,,3", "no item"),
    ('user,item,ts\n1,2,"3"\n"x\ny",,3\n', 3, '"x\ny",,3', "no item"),
    ("user,item,ts\r\n1,2,3\r\n\r\n1,2,soon\r\n", 4, "1,2,soon", "neither a number nor a date"),
    ("user,item,ts\n1,2,3\n1,2,inf\n", 3, "1,2,inf", "neither a number nor a date"),
    ("user,item,ts\n1,2,2020-01-01\n1,2,2020-13-01\n", 3, "1,2,2020-13-01", "nor a date"),
]


@pytest.mark.parametrize("content, line, text, problem", FLAWS)
def test_a_malformed_row_is_named(write, content, line, text, problem):
    with pytest.raises(ValueError) as error:
        read_interactions(write(content))
    message = str(error.value)
    assert f"log.csv, line {line}: {text!r}" in message
    assert problem in message and "on_bad_rows='skip'" in message


@pytest.mark.parametrize("content, line, text, problem", FLAWS)
def test_malformed_rows_are_skipped_and_counted(write, content, line, text, problem):
    bad = 2 if "fields" in problem else 1
    with pytest.warns(UserWarning, match=f"skipped {bad} of {1 + bad} rows.*line {line}"):
        inter = read_interactions(write(content), on_bad_rows="skip")
    assert inter.dropped == {"malformed rows": bad}
    assert as_dict(inter) == {1: [2]}


def test_a_user_without_items_is_malformed(write):
    path = write("1 5 4\n2\n3 4\n")
    with pytest.raises(ValueError, match="line 2: '2': a user without any item"):
        read_interactions(path)
    with pytest.warns(UserWarning, match="skipped 1"):
        assert as_dict(read_interactions(path, on_bad_rows="skip")) == {1: [5, 4], 3: [4]}


@pytest.mark.parametrize(
    "content, name, message",
    [
        (b"", "log.csv", "is empty"),
        (b"\n \n", "log.csv", "is empty"),
        (b"user,item\n", "log.csv", "no interaction"),
        (b"user,item\n1,\n", "log.csv", "line 2.*no item"),
        (b"<!DOCTYPE html><html>404", "log.csv", "web page.*Download the file again"),
        (b"\n <html>", "log.tsv", "web page"),
        (
            gzip.compress(ROWS.encode() * 99, mtime=0)[:-20],
            "log.csv.gz",
            "cut short.*Download it again",
        ),
        (b"\x1f\x8b\x08rubbish", "log.csv.gz", "cut short or damaged"),
        (b"PK\x03\x04...", "log.csv", "zip archive: unpack"),
        (b"PK\x05\x06...", "log.csv", "zip archive: unpack"),
        (b"PAR1 but no more", "log.parquet", "Parquet file that is cut short"),
        (b"<html>404", "log.parquet", "named like a Parquet file but is none"),
        (b"user,item\n\0\0\0", "log.csv", "not text"),
    ],
)
def test_what_is_no_log_is_refused(write, content, name, message):
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        read_interactions(write(content, name))


def test_a_header_without_rows_cannot_be_skipped_into_a_log(write):
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no well-formed interaction"):
        read_interactions(write("user,item\n1,\n"), on_bad_rows="skip")


def test_one_user_and_users_too_short_to_split(write):
    split = leave_one_out(read_interactions(write("user,item\n1,5\n1,6\n1,7\n2,5\n")))
    assert len(split.test) == 1 and split.train.num_interactions == 2
    one = read_interactions(write("user,item\n1,5\n"))
    assert one.num_users == one.num_items == one.num_interactions == 1
    assert len(leave_one_out(one).test) == 0


def test_a_bad_row_far_into_a_large_file_is_found(write):
    rows = [f"{i % 999},{i % 77},{i}" for i in range(1_500_000)]
    rows[1_400_000] += ",one too many"
    with pytest.raises(ValueError, match="line 1400002: '401,63,1400000,one too many'"):
        read_interactions(write("user,item,ts\n" + "\n".join(rows)))


# ---- fuzz --------------------------------------------------------------------------------

PRINTABLE = st.characters(codec="utf-8", exclude_characters='\r\n\0",', exclude_categories=["Cc"])
IDS = st.one_of(
    st.integers(-5, 2**70).map(str),
    st.text(PRINTABLE, min_size=1, max_size=6).map(str.strip).filter(bool),
)


@FAST
@given(rows=st.lists(st.tuples(IDS, IDS, st.integers(-9, 9)), min_size=1), crlf=st.booleans())
def test_any_well_formed_table_is_read_as_written(write, rows, crlf):
    end = "\r\n" if crlf else "\n"
    path = write("".join(f"{u},{i},{t}{end}" for u, i, t in [("user", "item", "ts"), *rows]))
    inter = read_interactions(path, user="user", item="item", timestamp="ts")
    expected = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append((item, time))
    times = np.split(inter.timestamps, inter.sequences.offsets[1:-1])
    got = {
        str(user): [(str(inter.item_ids[i]), t) for i, t in zip(items, when, strict=True)]
        for user, items, when in zip(inter.user_ids, inter.sequences, times, strict=True)
    }
    assert got == expected
    assert inter.num_items == len({item for _, item, _ in rows})


@FAST
@given(
    head=st.sampled_from([b"", b"user,item,ts\n1,2,3\n", b"user\titem\n", b"1 2 3\n", b"PAR1"]),
    tail=st.one_of(
        st.binary(max_size=60), st.text("1,2\n \t;\"'|:x\r", max_size=40).map(str.encode)
    ),
    packed=st.booleans(),
    options=st.sampled_from(
        [{}, {"on_bad_rows": "skip"}, {"layout": "sequences"}, {"user": 0, "item": 1}]
    ),
)
def test_whatever_the_bytes_it_is_a_log_or_a_clear_error(write, head, tail, packed, options):
    content = gzip.compress(head + tail) if packed else head + tail
    path = write(content, "fuzz.txt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            inter = read_interactions(path, **options)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert inter.num_interactions > 0
        assert (inter.lengths > 0).all() and (inter.item_counts[1:] > 0).all()
        assert "" not in inter.user_ids.tolist()


@FAST
@given(cut=st.integers(1, 200))
def test_a_parquet_file_cut_short_is_an_error(write, tmp_path, cut):
    pd.DataFrame({"user": [1, 2], "item": [3, 4]}).to_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(ValueError, match="cut short|named like a Parquet"):
        read_interactions(write(whole[:-cut], "cut.parquet"))
