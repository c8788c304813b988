"""Extraction end to end: real clips, the real I3D weights, real processes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.extract.clips import Clip
from tests.extract.run.command import SETTINGS, contents, run_command

from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.plan import pinned
from aqa_extract.run import extract
from aqa_shared.errors import ExitCode, StoreError
from aqa_shared.manifest import find_videos
from aqa_shared.records import FlowSettings, Sampling
from aqa_shared.store import FeatureStore, verify
from aqa_shared.store import contents as contents_of


def test_the_command_fills_a_store_and_names_what_it_could_not_use(clips: Path, undisturbed: Path) -> None:
    store = FeatureStore.open(undisturbed)
    assert store.ids == ["clip0.mp4", "clip1.mp4", "clip2.mp4", "clip3.mp4", "sub/clip4.mp4"]
    assert store.lengths.tolist() == [2] * 5
    assert store.read("rgb").shape == (10, 1024)
    assert np.isfinite(store.read("rgb")).all()
    assert store.table["score"][:4].tolist() == [50, 57, 64, 71]
    assert np.isnan(store.table["score"][4])
    assert store.table["split"].tolist() == ["train", "train", "train", "test", ""]
    assert store.table["n_frames"].tolist() == [20, 24, 28, 34, 40]
    assert store.provenance["weights"]["rgb"]["name"] == "i3d-kinetics-400"
    assert verify(undisturbed) == []
    failures = quarantine.read(undisturbed)
    assert list(failures) == ["broken.mp4"]
    assert failures["broken.mp4"].stage == "probe"


def test_frame_indices_are_those_of_the_sampling(undisturbed: Path) -> None:
    store = FeatureStore.open(undisturbed)
    first = store.video("clip0.mp4", "frame_index")
    assert first[0].tolist() == list(range(16))
    assert first[1].tolist() == list(range(4, 20))
    times = store.video("clip0.mp4", "segment_start_time"), store.video("clip0.mp4", "segment_end_time")
    np.testing.assert_allclose(times[0], [0, 4 / 25], atol=1e-6)
    np.testing.assert_allclose(times[1], [16 / 25, 20 / 25], atol=1e-6)


def test_a_feature_is_what_the_network_says_of_those_frames(clips: Path, undisturbed: Path) -> None:
    """The engine against the shortest way there is: decode, resize, crop, one call of I3D."""
    import av

    from aqa_extract import frames as px
    from aqa_extract.i3d import load_i3d

    with av.open(str(clips / "clip1.mp4")) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    x = torch.from_numpy(frames[8:24]).permute(0, 3, 1, 2)
    x = (
        px.centre_crop(px.resize(x, px.size_at_short_side(*x.shape[-2:], SETTINGS.pixels.short_side)), 32).float()
        / 127.5
        - 1
    )
    network, _ = load_i3d("i3d-kinetics-400", "rgb")
    with torch.inference_mode():
        expected = network.features(x.transpose(0, 1)[None])[0].numpy()
    got = FeatureStore.open(undisturbed).video("clip1.mp4", "rgb")[1]
    # Another batch size may choose another kernel, whose sums are rounded in another order.
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_segments_follow_the_length_or_what_they_miss_is_said(clips: Path, tmp_path: Path) -> None:
    done = run_command(clips, tmp_path / "auto.zarr", "--segments", "auto")
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert "of the frames" not in done.stderr
    store = FeatureStore.open(tmp_path / "auto.zarr")
    assert dict(zip(store.ids, store.lengths.tolist(), strict=True)) == {
        "clip0.mp4": 2,
        "clip1.mp4": 2,
        "clip2.mp4": 2,
        "clip3.mp4": 3,
        "sub/clip4.mp4": 3,
    }
    done = run_command(clips / "sub", tmp_path / "one.zarr", "--segments", "1")
    assert "1 segment of 16 frames looks at 40% of the frames" in done.stderr
    assert "--segments auto looks at all of them (about 3 segments a video, 3 times the work" in done.stderr


def test_features_do_not_depend_on_batch_workers_or_neighbours(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    videos = [v for v in find_videos(clips).videos if v.id != "broken.mp4"]
    extract(videos[::-1], tmp_path / "b.zarr", SETTINGS, Options(workers=3))
    assert np.array_equal(
        FeatureStore.open(tmp_path / "b.zarr").read("rgb"), FeatureStore.open(undisturbed).read("rgb")
    )
    extract(videos[1:2], tmp_path / "alone.zarr", SETTINGS)
    alone = FeatureStore.open(tmp_path / "alone.zarr").read("rgb")
    assert np.array_equal(alone, FeatureStore.open(undisturbed).video(videos[1].id, "rgb"))


def test_the_cores_share_one_video_and_change_no_bit(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(
        update={
            "streams": ("rgb", "flow", "actor-rgb"),
            "flow": FlowSettings(mode="parity"),
            "weights": {**SETTINGS.weights, "flow": "inflated-from-rgb", "actor": "ssd-mobilenet-v3"},
            "sampling": Sampling(segments=5),
        }
    )
    stores = []
    for cores in (1, 3):
        monkeypatch.setattr("aqa_extract.run.available_cores", lambda cores=cores: cores)
        stores.append(tmp_path / f"{cores}.zarr")
        extract(find_videos(clips).videos[4:5], stores[-1], settings)
    assert contents(stores[0]) == contents(stores[1])
    assert FeatureStore.open(stores[0]).table["motion"][0] > 0


def test_parts_are_extracted_as_parts(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second segment of a 20-frame part that begins at 4 is frames 8..24 of the file."""
    video = find_videos(clips).videos[2].model_copy(update={"start": 4, "end": 24})
    extract([video], tmp_path / "s.zarr", SETTINGS)
    part = FeatureStore.open(tmp_path / "s.zarr")
    assert part.video(video.id, "frame_index")[1].tolist() == list(range(8, 24))
    assert np.array_equal(part.read("rgb")[1], FeatureStore.open(undisturbed).video(video.id, "rgb")[1])


def test_shape_and_colours_are_recorded(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "v").mkdir()
    hlg = {"colorspace": 9, "color_primaries": 9, "color_trc": 18, "color_range": 1}
    Clip(aspect=Fraction(2), color=hlg).write(tmp_path / "v" / "hlg")
    Clip().write(tmp_path / "v" / "plain")
    videos, store = find_videos(tmp_path / "v").videos, tmp_path / "s.zarr"
    extract(videos, store, SETTINGS)
    hdr, plain = FeatureStore.open(store).metas
    assert (hdr["width"], hdr["height"], hdr["sample_aspect_ratio"]) == (128, 48, "2:1")
    assert [hdr[f"color_{name}"] for name in ("primaries", "transfer", "matrix", "range")] == [
        "bt2020",
        "arib-std-b67",
        "bt2020nc",
        "tv",
    ]
    assert (hdr["tone_mapped"], hdr["assumed_matrix"]) == ("hlg", "")
    assert (plain["tone_mapped"], plain["assumed_matrix"], plain["color_matrix"]) == ("", "bt601", "unknown")
    other = SETTINGS.model_copy(update={"pixels": SETTINGS.pixels.model_copy(update={"untagged_matrix": "bt709"})})
    with pytest.raises(StoreError, match="untagged_matrix"):
        extract(videos, store, other)


def test_other_settings_are_refused_with_the_difference(clips: Path, undisturbed: Path) -> None:
    videos = find_videos(clips).videos
    other = SETTINGS.model_copy(update={"bn_eps": 1e-5})
    with pytest.raises(StoreError, match="bn_eps"):
        extract(videos, undisturbed, other)


def test_flow_streams_store_motion(clips: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(
        update={
            "streams": ("rgb", "flow"),
            "flow": FlowSettings(mode="parity"),
            "weights": {**SETTINGS.weights, "flow": "inflated-from-rgb"},
            "sampling": Sampling(segments=1),
        }
    )
    extract(find_videos(clips).videos[1:2], tmp_path / "flow.zarr", settings)
    store = FeatureStore.open(tmp_path / "flow.zarr")
    assert store.streams == ("rgb", "flow")
    assert np.isfinite(store.read("flow")).all()
    assert not np.allclose(store.read("flow"), store.read("rgb"))
    assert store.table["motion"][0] > 0
    assert "inflated from rgb" in json.dumps(store.provenance["weights"]["flow"])


def test_logits_and_maps_on_request(clips: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"streams": ("rgb", "rgb:logits", "rgb:map")})
    extract(find_videos(clips).videos[1:2], tmp_path / "maps.zarr", settings)
    store = FeatureStore.open(tmp_path / "maps.zarr")
    assert store.read("rgb_logits").shape == (2, 400)
    maps = store.read("rgb_map")
    assert maps.shape == (2, 1024, 2, 1, 1)
    np.testing.assert_allclose(maps.mean(axis=(2, 3, 4)), store.read("rgb"), atol=1e-5)


def test_a_store_begun_with_a_default_goes_on_with_those_weights(clips: Path, undisturbed: Path) -> None:
    asked = SETTINGS.model_copy(update={"weights": {}})
    assert pinned(asked, contents_of(undisturbed)).weights == {"rgb": "i3d-kinetics-400"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--streams", "rgb,flwo"), ExitCode.USAGE, "flwo"),
        (("--streams", "flow", "--flow", "off"), ExitCode.USAGE, "--flow"),
        (("--crop", "64"), ExitCode.USAGE, "short_side"),
        (("--protocol", "evn"), ExitCode.USAGE, "error: protocol: "),
        (("--flow-bound", "-1"), ExitCode.USAGE, "error: flow_bound: "),
        (("--actor-every", "0"), ExitCode.USAGE, "error: actor_every: "),
        (("--untagged-matrix", "bt2020"), ExitCode.USAGE, "error: untagged_matrix: "),
        (("--workers", "0"), ExitCode.USAGE, "error: workers: "),
        (("--device", "cuda:9"), ExitCode.ENVIRONMENT, "cuda:9"),
        (("--weights", "rgb=no-such-weights"), ExitCode.USAGE, "no-such-weights"),
    ],
)
def test_wrong_options_say_what_to_do(
    clips: Path, tmp_path: Path, arguments: tuple[str, ...], code: ExitCode, words: str
) -> None:
    done = run_command(clips, tmp_path / "s.zarr", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_no_input(tmp_path: Path) -> None:
    done = run_command(tmp_path, tmp_path / "s.zarr")
    assert done.returncode == ExitCode.NO_INPUT
    assert not (tmp_path / "s.zarr").exists()
