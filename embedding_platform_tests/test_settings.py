import json
import os
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.platform import Platform
from embedding_platform.settings import BatchSettings, load_settings, masked, without_password
from embedding_platform.spaces import MODEL_SETS, Index

SECRET = "s3cr3t-value"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder without settings; returns it."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("EMBEDDING_PLATFORM_"):
            monkeypatch.delenv(name)
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "embedding_platform.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(**overrides: object) -> str:
    """The one line with which loading fails."""
    with pytest.raises(PlatformError) as caught:
        load_settings(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_defaults_lie_in_the_working_folder(folder):
    settings = load_settings()
    assert settings.media_url == str(folder / "media")
    assert settings.store_url == str(folder / ".embedding_platform" / "store")
    assert settings.milvus_uri == str(folder / ".embedding_platform" / "milvus")
    assert settings.active_spaces == MODEL_SETS["starter"]


def test_relative_paths_start_from_the_folder_of_the_file(folder):
    path = write(folder / "conf", "media_root: ../lake\nstore_root: state\nmilvus: {uri: db}\n", "mine.yaml")
    settings = load_settings(path)
    assert settings.media_url == str(folder / "lake")
    assert settings.store_url == str(folder / "conf" / "state")
    assert settings.milvus_uri == str(folder / "conf" / "db")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/lake/../lake2", "/lake2"),
        ("s3://bucket/lake", "s3://bucket/lake"),
        ("s3://bucket/lake/", "s3://bucket/lake"),
        ("file:///lake", "/lake"),
        ("~", str(Path("~").expanduser())),
    ],
)
def test_a_root_may_be_an_absolute_path_or_a_url(given, shown):
    assert load_settings(media_root=given, store_root="/elsewhere").media_url == shown


@pytest.mark.parametrize("uri", ["http://localhost:19530", "https://in01.zilliz.com", "tcp://h:1", "unix:/run/milvus"])
def test_the_uri_of_a_server_is_no_path(uri):
    assert load_settings(milvus={"uri": uri}).milvus_uri == uri


def test_held_out_queries_lie_where_the_settings_say(folder):
    queries = {"text/minilm": "q/words.txt", "image/clip": "s3://bucket/queries/"}
    path = write(folder / "conf", json.dumps({"quality": {"queries": queries}}), "mine.yaml")
    settings = load_settings(path)
    assert settings.queries_url("text/minilm") == str(folder / "conf" / "q" / "words.txt")
    assert settings.queries_url("image/clip") == "s3://bucket/queries"
    assert settings.queries_url("audio/whisper") is None


def test_a_generation_reaches_its_space_alone():
    spaces = load_settings(generations={"image/clip": 3}).active_spaces
    assert {space.key: space.generation for space in spaces if space.generation} == {"image/clip": 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quality": {"queries": {"image/clop": "q"}}}, "quality.queries names 'image/clop', no space of model_set"),
        ({"generations": {"image/clop": 1}}, "generations names 'image/clop', no space of model_set starter; did you"),
        ({"quality": {"queries": {"image/clip": f"ftp://me:{SECRET}@h/q"}}}, "quality.queries.image/clip holds a user"),
        ({"generations": {"image/clip": -1}}, "generations.image/clip = -1: "),
    ],
)
def test_queries_and_generations_are_of_known_spaces(given, said):
    assert said in complaint(**given)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_gives_the_defaults(folder, text):
    write(folder, text)
    assert load_settings().device == "auto"


def test_arguments_win_over_environment_over_file_over_defaults(folder, monkeypatch):
    write(folder, "device: cpu\nsensor_seconds: 40\nbatch: {text: 100, image: 7}\nmilvus: {uri: from-file}\n")
    monkeypatch.setenv("EMBEDDING_PLATFORM_SENSOR_SECONDS", "50")
    monkeypatch.setenv("EMBEDDING_PLATFORM_BATCH__IMAGE", "8")
    monkeypatch.setenv("EMBEDDING_PLATFORM_MILVUS__TIMEOUT_SECONDS", "3")
    settings = load_settings()
    assert (settings.device, settings.sensor_seconds) == ("cpu", 50)
    assert settings.batch == BatchSettings(text=100, image=8)
    assert (settings.milvus.uri, settings.milvus.timeout_seconds) == ("from-file", 3)
    assert load_settings(sensor_seconds=60).sensor_seconds == 60


def test_the_environment_names_the_file_and_takes_lists_and_tables(folder, monkeypatch):
    path = write(folder / "conf", "device: cpu\n", "mine.yaml")
    monkeypatch.setenv("EMBEDDING_PLATFORM_SETTINGS", str(path))
    monkeypatch.setenv("EMBEDDING_PLATFORM_SPACES", '["image/clip"]')
    monkeypatch.setenv("EMBEDDING_PLATFORM_MODELS", json.dumps({"image/clip": f"openai/clip@{COMMIT}"}))
    settings = load_settings()
    (space,) = settings.active_spaces
    assert (settings.device, space.key) == ("cpu", "image/clip")
    assert (space.model.location, space.model.revision) == ("openai/clip", COMMIT)


@pytest.mark.parametrize(
    ("given", "location", "revision"),
    [
        (f"org/name@{COMMIT}", "org/name", COMMIT),
        (f"name@{COMMIT}", "name", COMMIT),
        ("/models/clip", "/models/clip", None),
        ("/models@2026/clip", "/models@2026/clip", None),
        ("./clip", "{folder}/clip", None),
        ("../clip@main", "{folder.parent}/clip@main", None),
        ("package:mine/clip", "package:mine/clip", None),
        ("package:mine/clip@1", "package:mine/clip@1", None),
    ],
)
def test_a_model_may_be_another(folder, given, location, revision):
    write(folder, json.dumps({"models": {"image/clip": given}}))
    model = next(space.model for space in load_settings().active_spaces if space.key == "image/clip")
    assert (model.location, model.revision) == (location.format(folder=folder), revision)


@pytest.mark.parametrize("location", ["org/name", "org/name@main", f"org/name@{COMMIT[:39]}", f"a/b/c@{COMMIT}", ""])
def test_a_model_of_the_hub_needs_its_commit(location):
    message = complaint(models={"image/clip": location})
    assert f"models.image/clip = {location!r}" in message
    assert f"write {location.partition('@')[0]}@<40 hex digits of the commit>" in message


def test_an_index_may_be_another_for_one_space(folder):
    write(folder, "indexes: {image/clip: {type: IVF_FLAT, build: {nlist: 64}}}")
    indexes = {space.key: space.index for space in load_settings().active_spaces}
    assert indexes.pop("image/clip") == Index("IVF_FLAT", {"nlist": 64}, {"nprobe": 16})
    assert {index.type for index in indexes.values()} == {"HNSW"}


@pytest.mark.parametrize(
    "line",
    ["0 2 * * *", "*/15 0-6 1,15 JAN-mar,12 mon-Fri", "59 23 31 12 7", "5/20 8-18/2 * * 0", "0  2 29 feb *"],
)
def test_a_cron_line_may_hold_lists_ranges_steps_and_names(line):
    assert load_settings(nightly=line).nightly == line


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("0 2 * *", ["five fields, minute hour day month weekday"]),
        ("0 0 2 * * *", ["five fields"]),
        ("@daily", ["five fields"]),
        ("60 2 * * *", ["'60' is no minute", "0 to 59"]),
        ("0 24 * * *", ["'24' is no hour", "0 to 23"]),
        ("0 2 0 * *", ["'0' is no day", "1 to 31"]),
        ("0 2 * 13 *", ["'13' is no month", "1 to 12 or jan to dec"]),
        ("0 2 * * 8", ["'8' is no weekday", "0 to 7 or sun to sat"]),
        ("0 2 * * jan", ["'jan' is no weekday"]),
        ("0 18-6 * * *", ["'18-6' is no hour", "a rising range"]),
        ("*/0 2 * * *", ["'*/0' is no minute", "a step */n"]),
        ("1,,2 2 * * *", ["'' is no minute"]),
        ("0 2- * * *", ["'2-' is no hour"]),
        ("-1 2 * * *", ["'-1' is no minute"]),
        ("0 2 30 2 *", ["no month 2 has a day 30"]),
        ("0 2 31 4,jun *", ["no month 4,jun has a day 31"]),
    ],
)
def test_what_is_no_cron_line_is_refused_with_the_field(line, parts):
    message = complaint(nightly=line)
    for part in [f"nightly = {line!r}", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("devise: cpu", ["devise = 'cpu'", "no such setting", "did you mean device?"]),
        ("base: /", ["base", "no such setting", "choose from media_root"]),
        ("bse: /", ["bse = '/'", "no such setting", "choose from media_root"]),
        ("xyz: 1", ["xyz = 1", "no such setting", "choose from", "media_root"]),
        ("batch: {txt: 5}", ["batch.txt = 5", "did you mean text?"]),
        ("indexes: {image/clip: {type: FLAT, bild: {}}}", ["indexes.image/clip.bild", "did you mean build?"]),
        ("listing: {buckets: {a/b: 2}}", ["listing.buckets.a/b = 'a/b'", "correct it in embedding_platform.yaml"]),
        ("listing: {buckets: {photos: 0}}", ["listing.buckets.photos = 0", "greater than or equal to 1"]),
        ("batch: {text: many}", ["batch.text = 'many'", "valid integer", "correct it in embedding_platform.yaml"]),
        ("batch: {text: 0}", ["batch.text = 0", "greater than or equal to 1"]),
        ("batch: 5", ["batch = 5", "dictionary"]),
        ("milvus:", ["milvus = None", "dictionary"]),
        ("device: gpu", ["device = 'gpu'", "cuda"]),
        ("model_set: big", ["model_set = 'big'", "'starter' or 'hub'"]),
        ("spaces: image/clip", ["spaces = 'image/clip'", "list"]),
        ("precision: int8", ["precision = 'int8'", "'bfloat16'"]),
        ("cutting: {audio_window_seconds: 31}", ["cutting.audio_window_seconds = 31", "less than or equal to 30"]),
        ("nightly: often", ["nightly = 'often'", "correct it"]),
        (
            "indexes: {image/clip: {type: HNSW, build: {M: 1}}}",
            ["indexes.image/clip = {type, build}", "build parameter M is 1, allowed are 2 to 2048"],
        ),
        (
            "indexes: {image/clip: {type: FLAT, search: {ef: 9}}}",
            ["indexes.image/clip", "index FLAT takes the search parameters none, given are ef"],
        ),
        ("quality: {min_recall: 2}", ["quality.min_recall = 2", "less than or equal to 1"]),
        ("indexes: {image/clip: {type: ANNOY}}", ["indexes.image/clip.type = 'ANNOY'", "'HNSW'"]),
        ("1: 2", ["1", "no such setting"]),
        ("batch: {1: 2}", ["batch", "1", "string"]),
        ("device: cpu\0", ["embedding_platform.yaml", "control characters"]),
        ("- a\n- b", ["embedding_platform.yaml", "key: value"]),
        ("just words", ["embedding_platform.yaml", "key: value"]),
        ("a: [1", ["embedding_platform.yaml", "not valid YAML", "line"]),
        ("a: b: c", ["embedding_platform.yaml", "not valid YAML", "line 1"]),
        ("\tdevice: cpu", ["embedding_platform.yaml", "not valid YAML", "line 1"]),
        (b"device: \xe9t\xe9", ["embedding_platform.yaml", "UTF-8"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_key_value_and_mend(folder, text, parts):
    write(folder, text)
    message = complaint()
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("weekly: monthly", ["weekly = 'monthly'", "five fields"]),
        ("timezone: Middle/Earth", ["timezone = 'Middle/Earth'", "Europe/Berlin"]),
        ("timezone: ../../etc/passwd", ["timezone", "no time zone"]),
        ("listing: {quiet_seconds: -1}", ["listing.quiet_seconds = -1"]),
        ("alerts: {timeout_seconds: 60}", ["alerts.timeout_seconds = 60"]),
        ("schedules: [{name: a, does: probe, crom: x}]", ["schedules.0.crom", "did you mean cron?"]),
        ("schedules: [{name: a, does: dance, cron: '0 2 * * *'}]", ["schedules.0.does = 'dance'", "'reconcile'"]),
        ("schedules: [{name: A b, does: probe, cron: '0 2 * * *'}]", ["schedules.0.name = 'A b'"]),
        ("schedules: [{name: a, does: probe, cron: '0 2 30 2 *'}]", ["schedules.0.cron", "no month 2 has a day 30"]),
        (
            "schedules: [{name: nightly, does: probe, cron: '0 2 * * *'}]",
            ["two schedules are called nightly", "rename one"],
        ),
        (
            "schedules: [{name: media, does: reconcile, cron: '0 2 * * *', modalities: [text]}]",
            ["schedule media would be text_media in the web UI", "rename it"],
        ),
        (
            "schedules: [{name: text, does: probe, cron: '0 2 * * *'}, {name: probe, does: reconcile, "
            "cron: '0 2 * * *', modalities: [text]}]",
            ["schedule probe would be text_probe in the web UI, as a sensor or another schedule is", "rename it"],
        ),
        (
            "schedules: [{name: a, does: reconcile, cron: '0 2 * * *', spaces: [image/clup]}]",
            ["schedule a names 'image/clup'", "did you mean image/clip?"],
        ),
        (
            "spaces: [image/clip]\nschedules: [{name: a, does: reconcile, cron: '0 2 * * *', modalities: [text]}]",
            ["schedule a names 'text', none of the modalities kept", "choose from image"],
        ),
        (
            "schedules: [{name: a, does: maintenance, cron: '0 2 * * *', spaces: [image/clip]}]",
            ["schedule a names modalities, spaces or sources, but maintenance is of all"],
        ),
        (
            "schedules: [{name: a, does: probe, cron: '0 2 * * *', sources: [letters]}]",
            ["schedule a names sources, but a probe is of whole spaces"],
        ),
        (
            "schedules: [{name: a, does: reconcile, cron: '0 2 * * *', sources: []}]",
            ["schedule a names no sources", "leave sources out"],
        ),
    ],
)
def test_a_mistake_about_what_runs_by_itself_is_one_line(folder, text, parts):
    write(folder, text)
    message = complaint()
    for part in parts:
        assert part in message


@pytest.mark.parametrize("address", [f"hooks/{SECRET}", f"ftp://host/{SECRET}", f"https://me:{SECRET}@host/"])
def test_a_webhook_that_is_no_address_is_refused_without_showing_it(address):
    assert "alerts.webhook" in complaint(alerts={"webhook": address})


def test_a_webhook_is_shown_as_stars():
    assert masked(load_settings(alerts={"webhook": f"https://host/{SECRET}"}))["alerts"]["webhook"] == "*****"
    assert masked(load_settings())["alerts"]["webhook"] == ""


def test_several_mistakes_are_all_named(folder):
    write(folder, "devise: cpu\nbatch: {text: 0, imago: 1}\n")
    message = complaint()
    assert all(key in message for key in ("devise", "batch.text", "batch.imago"))


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("DEVISE", "cpu", ["EMBEDDING_PLATFORM_DEVISE", "did you mean EMBEDDING_PLATFORM_DEVICE?", "unset"]),
        ("BASE", "/", ["EMBEDDING_PLATFORM_BASE is no setting", "unset it"]),
        ("base", "/", ["EMBEDDING_PLATFORM_base is no setting", "unset it"]),
        ("BATCH__TXT", "5", ["batch.txt = '5'", "did you mean text?"]),
        ("BATCH__TEXT", "many", ["batch.text = 'many'", "valid integer"]),
        ("BATCH", "{broken", ["EMBEDDING_PLATFORM_BATCH", "JSON"]),
        ("SPACES", "image/clip", ["spaces = 'image/clip'", "valid list", "in the environment"]),
        ("MODELS", '["a"]', ["models", "dictionary"]),
        ("MILVUS", f'{{"token": "{SECRET}", broken', ["EMBEDDING_PLATFORM_MILVUS", "JSON"]),
        ("SETTINGS", "nowhere.yaml", ["nowhere.yaml is not there", "EMBEDDING_PLATFORM_SETTINGS"]),
    ],
)
def test_a_mistake_in_the_environment_is_named(monkeypatch, name, value, parts):
    monkeypatch.setenv(f"EMBEDDING_PLATFORM_{name}", value)
    message = complaint()
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"device": "cpu", "precision": "float16"}, ["precision float16", "device cpu", "bfloat16"]),
        ({"spaces": ["image/clp"]}, ["spaces", "'image/clp'", "did you mean image/clip?"]),
        ({"spaces": []}, ["spaces", "empty", "leave it out"]),
        ({"spaces": ["text/mpnet"]}, ["'text/mpnet'", "model_set starter"]),
        ({"models": {"image/none": "x"}}, ["models", "'image/none'", "did you mean image/"]),
        ({"indexes": {"image/none": {"type": "FLAT"}}}, ["indexes", "'image/none'"]),
        ({"cutting": {"overlap_tokens": 200}}, ["cutting.overlap_tokens 200", "256 tokens", "choose fewer"]),
        ({"store_root": "media/store"}, ["store_root", "inside media_root", "move it out"]),
        ({"store_root": "media"}, ["store_root", "inside media_root"]),
        ({"store_root": "media/../media/x"}, ["store_root", "inside media_root"]),
        ({"milvus": {"uri": "media/db"}}, ["milvus.uri", "inside media_root"]),
        ({"media_root": "s3://b/m/", "store_root": "s3://b/m/store"}, ["store_root", "inside media_root"]),
        ({"media_root": "file:///m", "store_root": "/m/store"}, ["store_root", "inside media_root"]),
        ({"cache_root": "s3://bucket/cache"}, ["cache_root s3://bucket/cache", "no local folder"]),
        ({"cache_root": "media/cache"}, ["cache_root", "inside media_root"]),
        ({"runtime": "onnx"}, ["runtime", "'openvino'"]),
        ({"models": {"text/minilm": "openai:bge-m3"}}, ["models.text/minilm", "not of the family", "openai_..."]),
        (
            {"model_set": "hub", "models": {"text/openai_3_small": "BAAI/bge-m3"}},
            ["models.text/openai_3_small", "not of the family", "write openai:NAME"],
        ),
        (
            {"media_root": f"ftp://me:{SECRET}@host/lake"},
            ["media_root ftp://*****@host/lake", "password", "FSSPEC_FTP_PASSWORD"],
        ),
    ],
)
def test_what_cannot_work_together_is_refused(overrides, parts):
    message = complaint(**overrides)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("store", ["media-store", "mediastore", "../media/store"])
def test_a_store_beside_the_media_is_fine(store):
    assert load_settings(store_root=store).store_url.endswith("store")


@pytest.mark.parametrize(
    "text",
    [
        f"milvus: {{tokn: {SECRET}}}",
        f"milvus: {{auth: {SECRET}}}",
        f"openai: {{kee: {SECRET}}}",
        f"openai: {{key: [{SECRET}]}}",
        f"openai: {{url: 'https://me:{SECRET}@host/v1'}}",
        f"milvsu: {{token: {SECRET}}}",
        f"milvus_token: {SECRET}",
        f"token: {SECRET}",
        f"milvus: {{token: [{SECRET}]}}",
        f"milvus: {{token {SECRET}}}",
        f"milvus: {{token={SECRET}}}",
        f"milvus: {{token:{SECRET}}}",
        f"milvsu: {{token {SECRET}}}",
        f"token={SECRET}: 1",
        f"milvus: [{{token: {SECRET}}}]",
        f"milvus: {{uri: 'http://me:{SECRET}@host', timeout_seconds: soon}}",
        f"media_roott: 'ftp://me:{SECRET}@host/lake'",
        f"batch: {{text: 'http://me:{SECRET}@host'}}",
        f"batch: {{text: 'http://me:pass@{SECRET}@host'}}",
        f"milvus: {{token: {SECRET}, uri: [}}",
        f"milvus: {{token: *{SECRET}}}",
        f"milvus: {{token: !{SECRET} x}}",
        f"milvus:\n  token: {SECRET}: x",
    ],
)
def test_no_error_shows_a_secret(folder, text):
    write(folder, text)
    complaint()


def test_printed_settings_show_no_secret():
    settings = load_settings(
        media_root="abfs://container@account.dfs.core.windows.net/lake",
        store_root=f"ftp://me:a@{SECRET}@host/store",
        milvus={"uri": f"http://me:{SECRET}@host:19530", "token": SECRET},
        openai={"key": SECRET},
        quality={"queries": {"image/clip": f"https://host/queries?sig={SECRET}"}},
    )
    shown = masked(settings)
    assert SECRET not in json.dumps(shown)
    assert shown["milvus"]["token"] == shown["openai"]["key"] == "*****"
    assert shown["milvus"]["uri"] == "http://*****@host:19530"
    assert shown["store_root"] == "ftp://*****@host/store"
    assert SECRET not in repr(settings.milvus.token)
    assert masked(load_settings())["milvus"]["token"] == masked(load_settings())["openai"]["key"] == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host:19530/x", "http://host:19530/x"),
        ("s3://bucket/folder/me@home.txt", "s3://bucket/folder/me@home.txt"),
        ("/lake/me@home:1?x", "/lake/me@home:1?x"),
        (f"abfs://media@account/x?sig={SECRET}", "abfs://media@account/x?*****"),
        ("openai:small@https://api.example.org/v1", "openai:small@https://api.example.org/v1"),
        (f"http://me:{SECRET}@host/x", "http://*****@host/x"),
        (f"http://{SECRET}@host/x", "http://*****@host/x"),
        (f"http://me:p@{SECRET}@host/x", "http://*****@host/x"),
        (f"http://me:p@a/{SECRET}@host/x", "http://*****@host/x"),
        (f"s3://key:a/{SECRET}@bucket/x", "s3://*****@bucket/x"),
        (f"s3://key:a/{SECRET}/+=@bucket/x", "s3://*****@bucket/x"),
        (f"https://host/x?sv=1&sig={SECRET}", "https://host/x?*****"),
        (f"https://host/x?to=me@home&sig={SECRET}", "https://host/x?*****"),
        (f"https://host:80/x?to=me@home&sig={SECRET}", "https://*****"),
        (f"http://me:p?{SECRET}@host/x", "http://*****"),
        (f"http://me:{SECRET}@host/x?sig={SECRET}", "http://*****@host/x?*****"),
        (f"no http://me:{SECRET}@a, no s3://k:{SECRET}/@b; why?", "no http://*****@a, no s3://*****@b; why?"),
        (f"a://me:{SECRET}@b,c://me:{SECRET}@d", "a://*****@d"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(text, shown):
    assert without_password(text) == shown


@pytest.mark.parametrize("owner", ["data-platform", "team:", "team:two words", "me@", "me@home", "@example.org"])
def test_an_owner_that_dagster_does_not_take_is_refused(owner):
    message = complaint(owners=["team:search", owner])
    assert message.startswith("owners = ")
    assert f"{owner!r} owns no asset; write team:NAME or an email address" in message


@pytest.mark.parametrize("page", ["docs/metadata.md", f"https://me:{SECRET}@host/page", f"https://host/page?{SECRET}"])
def test_a_page_that_is_no_link_is_refused(page):
    message = complaint(metadata_page=page)
    assert message.startswith("metadata_page = ")
    assert "no page of the web; write http:// or https://" in message


@pytest.mark.parametrize("place", [f"s3://key:a/{SECRET}@bucket/x", f"ftp://me:p@{SECRET}@host/x"])
@pytest.mark.parametrize("setting", ["media_root", "milvus.import_root", "quality.queries", "openai.url"])
def test_a_password_that_rows_would_show_is_refused_whatever_it_holds(setting, place):
    name, _, field = setting.partition(".")
    value = {"image/clip": place} if field == "queries" else place
    assert setting in complaint(**{name: {field: value} if field else value})


def test_spaces_on_request_are_kept_where_they_are_named():
    usual = [space.key for space in load_settings(model_set="hub").active_spaces]
    assert "audio/whisper" in usual
    assert "audio/whisper_decoder" not in usual
    (chosen,) = load_settings(model_set="hub", spaces=["audio/whisper_decoder"]).active_spaces
    assert chosen.model.pooling == "decoder"


def test_a_server_is_part_of_what_its_model_is():
    places = []
    for url in ("https://api.openai.com/v1", "http://localhost:8000/v1/"):
        (space,) = load_settings(model_set="hub", spaces=["text/openai_3_small"], openai={"url": url}).active_spaces
        places.append(space.model.location)
    assert places == [
        "openai:text-embedding-3-small@https://api.openai.com/v1",
        "openai:text-embedding-3-small@http://localhost:8000/v1",
    ]
    (space,) = load_settings(
        model_set="hub", spaces=["text/openai_3_small"], models={"text/openai_3_small": "openai:bge-m3"}
    ).active_spaces
    assert space.model.location == "openai:bge-m3@https://api.openai.com/v1"


def test_a_file_that_is_named_must_be_there(folder):
    assert "none.yaml is not there" in complaint(file=folder / "none.yaml")


def test_settings_do_not_change():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.device = "cpu"


@pytest.mark.parametrize(
    ("milvus", "words"),
    [
        ({}, True),
        ({"uri": "file:///data/milvus"}, True),
        ({"uri": "http://localhost:19530"}, False),
        ({"uri": "unix:/run/milvus"}, False),
        ({"uri": "http://localhost:19530", "search_words": True}, True),
        ({"search_words": False}, False),
    ],
)
def test_text_is_found_by_its_words_in_a_folder_unless_a_setting_says_otherwise(milvus, words):
    assert load_settings(milvus=milvus).search_words == words
    platform = Platform(load_settings(milvus=milvus, spaces=["text/minilm", "image_text/clip"]))
    assert [platform.target(space).words for space in platform.spaces] == [words, False]
