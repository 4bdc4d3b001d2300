"""The data sets the book uses: where they are published, what they must look like, on what terms.

The catalogue is data, not code: :func:`~seqrec_lib.data.loading.load_dataset` reads it. Files are
named by their place in a data folder, which is also the place to put them by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATASETS", "DataFile", "DatasetInfo", "Source", "Titles"]


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: its place in a data folder.
        sha256: of the file, or None where it is not known.
        urls: addresses, the publisher's first, then mirrors; empty: not fetched automatically.
        archive_sha256: where the addresses give a zip archive, the archive's hash; the file is
            the archive's member of the same path.
    """

    path: str
    sha256: str | None = None
    urls: tuple[str, ...] = ()
    archive_sha256: str | None = None


@dataclass(frozen=True)
class Titles:
    """A text file of items' titles: an item per line, ``id`` and ``title`` are column numbers."""

    file: DataFile
    sep: str
    encoding: str = "latin-1"
    header: bool = False
    id: int = 0
    title: int = 1


@dataclass(frozen=True)
class Source:
    """One way to obtain a data set: a log, how it is read, and where the titles are.

    Attributes:
        log: the file of interactions.
        read: keyword arguments for :func:`~seqrec_lib.data.reading.read_interactions`.
        titles: None where the publisher has none. A log is loaded without titles when their
            file is missing and cannot be fetched.
        item_map: lines ``number id``, from the log's item numbers to the ids of ``titles``.
        sasrec_order: whether to filter and number as the SASRec authors did.
    """

    log: DataFile
    read: Mapping[str, object]
    titles: Titles | None = None
    item_map: DataFile | None = None
    sasrec_order: bool = False


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set.

    Attributes:
        name: the key in ``DATASETS``.
        title: for tables and captions.
        homepage: the publisher's page.
        licence: the terms of use.
        citation: what to cite.
        statistics: published users, items and interactions; checked on loading.
        sources: ways to obtain it, the preferred one first.
        note: what one should know before using it.
        by_hand: how to get it, where it may not be fetched automatically.
        family: of data sets from one place, the same word; they are not independent evidence.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    statistics: Mapping[str, int]
    sources: tuple[Source, ...]
    note: str = ""
    by_hand: str = ""
    family: str = ""

    @property
    def timestamps(self) -> bool:
        """Whether the preferred source has timestamps."""
        return self.sources[0].read.get("timestamp") not in (None, False)


def _counts(users: int, items: int, interactions: int) -> dict[str, int]:
    return {"users": users, "items": items, "interactions": interactions}


# ---- what to cite, and on what terms ----------------------------------------------------

HARPER = (
    "F. M. Harper and J. A. Konstan (2015). The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5(4), 19. doi:10.1145/2827872"
)
S3REC = (
    "K. Zhou et al. (2020). S3-Rec: Self-Supervised Learning for Sequential Recommendation with "
    "Mutual Information Maximization. CIKM. arXiv:2008.07873"
)
AMAZON = (
    "J. McAuley, C. Targett, Q. Shi and A. van den Hengel (2015). Image-Based Recommendations on "
    "Styles and Substitutes. SIGIR. arXiv:1506.04757"
)
SASREC = (
    "W.-C. Kang and J. McAuley (2018). Self-Attentive Sequential Recommendation. ICDM. "
    "arXiv:1808.09781"
)
LASTFM = (
    "I. Cantador, P. Brusilovsky and T. Kuflik (2011). 2nd Workshop on Information Heterogeneity "
    "and Fusion in Recommender Systems (HetRec). RecSys. doi:10.1145/2043932.2044016"
)
NO_REDISTRIBUTION = (
    "Research use with acknowledgement; no redistribution and no commercial use without "
    "permission (GroupLens, README of the data set)"
)

# ---- MovieLens --------------------------------------------------------------------------

# SHA-256 of the archives, as TensorFlow Datasets pins them (url_checksums/movielens.txt)
GROUPLENS = {
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
}


def _movielens(path: str, sha256: str | None = None) -> DataFile:
    archive = path.split("/")[0]
    address = f"https://files.grouplens.org/datasets/movielens/{archive}.zip"
    mirror = f"https://web.archive.org/web/2023id_/{address}"
    return DataFile(path, sha256, (address, mirror), GROUPLENS[archive])


def _github(path: str, sha256: str, repository: str, commit: str, file: str) -> DataFile:
    raw = f"https://raw.githubusercontent.com/{repository}"
    mirror = f"https://cdn.jsdelivr.net/gh/{repository}@{commit}/{file}"
    return DataFile(path, sha256, (f"{raw}/{commit}/{file}", f"{raw}/HEAD/{file}", mirror))


def _kang(file: str, sha256: str) -> DataFile:
    commit = "641c378fcfac265ea8d1e5fe51d4d53eb892d1b4"
    return _github(f"kang-sasrec/{file}", sha256, "kang205/SASRec", commit, f"data/{file}")


CSV = {"user": "userId", "item": "movieId", "timestamp": "timestamp", "title": False, "sep": ","}
PAIRS = {"user": 0, "item": 1, "sep": " "}
SEQUENCES = {"layout": "sequences", "sep": " "}

ml_1m_titles = Titles(
    _movielens(
        "ml-1m/movies.dat", "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9"
    ),
    sep="::",
)

MOVIELENS = [
    DatasetInfo(
        name="ml-100k",
        title="MovieLens-100K",
        homepage="https://grouplens.org/datasets/movielens/100k/",
        licence=NO_REDISTRIBUTION,
        citation=HARPER,
        statistics=_counts(943, 1_682, 100_000),
        family="MovieLens",
        sources=(
            Source(
                _movielens(
                    "ml-100k/u.data",
                    "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                ),
                {"user": 0, "item": 1, "timestamp": 3, "sep": "\t"},
                Titles(
                    _movielens(
                        "ml-100k/u.item",
                        "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                    ),
                    sep="|",
                ),
            ),
        ),
        note="Every rating counts as an interaction, whatever its value. No filter.",
    ),
    DatasetInfo(
        name="ml-latest-small",
        title="MovieLens latest-small",
        homepage="https://grouplens.org/datasets/movielens/latest/",
        licence="Redistribution under the same terms; no commercial use without permission "
        "(GroupLens, README of the data set)",
        citation=HARPER,
        statistics=_counts(610, 9_724, 100_836),
        family="MovieLens",
        sources=(
            Source(
                _movielens(
                    "ml-latest-small/ratings.csv",
                    "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
                ),
                CSV,
                Titles(
                    _movielens(
                        "ml-latest-small/movies.csv",
                        "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
                    ),
                    sep=",",
                    encoding="utf-8",
                    header=True,
                ),
            ),
        ),
        note="Every rating counts; only rated films are items. No filter.",
    ),
    DatasetInfo(
        name="ml-1m",
        title="MovieLens-1M",
        homepage="https://grouplens.org/datasets/movielens/1m/",
        licence=NO_REDISTRIBUTION,
        citation=f"{HARPER}. Filter and order: {SASREC}",
        statistics=_counts(6_040, 3_416, 999_611),
        family="MovieLens",
        sources=(
            Source(
                _movielens("ml-1m/ratings.dat"),
                {"user": 0, "item": 1, "timestamp": 3, "sep": "::"},
                ml_1m_titles,
                sasrec_order=True,
            ),
            Source(
                DataFile(
                    "ml-1m/ratings.csv.gz",
                    "613f7414e13a126aba62e2f9b597673658567f6212d7def5ea655fe880eb4a94",
                ),
                {"user": "user", "item": "movie", "timestamp": "timestamp", "sep": ","},
                ml_1m_titles,
                sasrec_order=True,
            ),
            Source(
                _kang(
                    "ml-1m.txt",
                    "b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
                ),
                PAIRS,
                ml_1m_titles,
                item_map=_github(
                    "ml-1m/sas_to_original_items.txt",
                    "9ae42c23af0b0fe2f189b9d5acc6cf3936bffe1a9568390cf5d100c0c1b1fca1",
                    "asash/ml1m-sas-mapping",
                    "d27e2bf2021e12764e7bf7b985091edd7c8d2f79",
                    "sas_to_original_items.txt",
                ),
            ),
        ),
        note="The SASRec authors' filter (films with five ratings or more), order and numbers, "
        "from the publisher's ratings.dat, or the same sequences from the authors' ml-1m.txt, "
        "which has no timestamps. ratings.csv.gz is a copy of the ratings whose column `exact` "
        "tells interpolated timestamps from the publisher's; its order is exact.",
    ),
    DatasetInfo(
        name="ml-20m",
        title="MovieLens-20M",
        homepage="https://grouplens.org/datasets/movielens/20m/",
        licence=NO_REDISTRIBUTION,
        citation=HARPER,
        statistics=_counts(138_493, 26_744, 20_000_263),
        family="MovieLens",
        sources=(
            Source(
                _movielens("ml-20m/ratings.csv"),
                CSV,
                Titles(_movielens("ml-20m/movies.csv"), sep=",", encoding="utf-8", header=True),
            ),
        ),
        note="Every rating counts. The file lists a user's films by number, so ties in time are "
        "in the order of film numbers. No filter.",
    ),
]


# ---- Amazon, Yelp, LastFM: files that papers share ---------------------------------------


def _s3rec(name, title, file, sha256, counts, origin, licence) -> DatasetInfo:
    commit = "2a81540ae18615d88ef88227b0c066e5b74781e5"
    repository = "RUCAIBox/CIKM2020-S3Rec"
    log = _github(f"s3rec/{file}", sha256, repository, commit, f"data/{file}")
    return DatasetInfo(
        name=name,
        title=title,
        homepage=f"https://github.com/{repository}",
        licence=licence,
        citation=f"{S3REC}. Origin: {origin}",
        family="Amazon" if origin == AMAZON else "",
        statistics=_counts(*counts),
        sources=(Source(log, SEQUENCES),),
        note="The 5-core file of the S3-Rec authors, used by many papers: a user's items in time "
        "order, without timestamps or titles.",
    )


def _sasrec(name, title, file, sha256, counts) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        title=title,
        homepage="https://github.com/kang205/SASRec",
        licence="Amazon reviews: research use",
        citation=f"{SASREC}. Origin: {AMAZON}",
        family="Amazon",
        statistics=_counts(*counts),
        sources=(Source(_kang(file, sha256), PAIRS),),
        note="The SASRec authors' file: one pass of a filter at five (not a 5-core: some users "
        "keep fewer events), no timestamps, no titles.",
    )


SHARED = [
    _s3rec(
        "beauty", "Amazon Beauty (5-core)", "Beauty.txt",
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        (22_363, 12_101, 198_502), AMAZON, "Amazon reviews: research use",
    ),
    _s3rec(
        "sports", "Amazon Sports and Outdoors (5-core)", "Sports_and_Outdoors.txt",
        "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
        (35_598, 18_357, 296_337), AMAZON, "Amazon reviews: research use",
    ),
    _s3rec(
        "toys", "Amazon Toys and Games (5-core)", "Toys_and_Games.txt",
        "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
        (19_412, 11_924, 167_597), AMAZON, "Amazon reviews: research use",
    ),
    _s3rec(
        "yelp", "Yelp (5-core)", "Yelp.txt",
        "724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed",
        (30_431, 20_033, 316_354),
        "Yelp Open Dataset, https://business.yelp.com/data/resources/open-dataset/",
        "Yelp Open Dataset terms: academic use",
    ),
    _s3rec(
        "lastfm", "LastFM (5-core)", "LastFM.txt",
        "9ded486adb5b0fe9dc761950afa0a9a05e93ff018992e0c52bf11afec529f802",
        (1_090, 3_646, 52_551), LASTFM, "Last.fm data (HetRec 2011): non-commercial use",
    ),
    _sasrec(
        "beauty-sasrec", "Amazon Beauty (SASRec)", "Beauty.txt",
        "3cd3d56cee682f5118f22d0443d5d27116075c719ec83bfdfa3e45df33a95e12",
        (52_204, 57_289, 394_908),
    ),
    _sasrec(
        "video-sasrec", "Amazon Video Games (SASRec)", "Video.txt",
        "b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651",
        (31_013, 23_715, 287_107),
    ),
]  # fmt: skip

ANIME = DatasetInfo(
    name="anime",
    title="MyAnimeList ratings",
    homepage="https://www.kaggle.com/datasets/CooperUnion/anime-recommendations-database",
    licence="CC0 1.0 (as stated on Kaggle)",
    citation="CooperUnion (2016). Anime Recommendations Database. Kaggle. Data of myanimelist.net",
    statistics=_counts(73_515, 11_200, 7_813_737),
    sources=(
        Source(
            DataFile("anime/rating.csv"),
            {"user": "user_id", "item": "anime_id", "timestamp": False, "sep": ","},
            Titles(DataFile("anime/anime.csv"), sep=",", encoding="utf-8", header=True),
        ),
    ),
    note="There are no timestamps. The order is that of the rows, and the file lists a user's "
    "titles by their number on the site, which follows the date a title was registered, not the "
    "date it was watched. To predict the next item here is to predict the next higher number; "
    "no conclusion about taste over time follows from it. Ratings of -1 (watched, not rated) "
    "count as interactions.",
    by_hand="By hand: Kaggle wants an account. Log in at "
    "https://www.kaggle.com/datasets/CooperUnion/anime-recommendations-database, download and "
    "unpack the archive, and put rating.csv and, for titles, anime.csv side by side.",
)

DATASETS: Mapping[str, DatasetInfo] = {info.name: info for info in [*MOVIELENS, *SHARED, ANIME]}
