"""Can Kinetics features see the score of the rendered dives? A ridge on them, cross-validated.

    python benchmarks/demo_learnable.py --videos 48 --segments 5 --crop 112

Prints Spearman correlation over held-out folds of: a ridge on the mean of the I3D RGB features, the same ridge on
the concatenated segments, and difficulty alone (which must know nothing). Rendered frames go straight into the
network, so this is about the pictures, not about the pipeline.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aqa_dives.dataset import Look, frames_of, perform


def features(look: Look, videos: int, segments: int, crop: int) -> np.ndarray:
    """I3D RGB features (video, segment, 1024) of evenly placed 16-frame segments."""
    import torch
    import torch.nn.functional as F

    from aqa_extract.i3d import load_i3d

    network, record = load_i3d("default", "rgb", 1e-3, print)
    print("weights:", record["name"])
    network.eval()
    starts = np.linspace(0, look.frames - 16, segments).round().astype(int)
    rows = []
    with torch.inference_mode():
        for index in range(videos):
            frames = torch.from_numpy(np.stack(list(frames_of(look, index)))).permute(0, 3, 1, 2).float()
            width = round(crop * look.width / look.height)
            frames = F.interpolate(frames, size=(crop, width), mode="bilinear") / 127.5 - 1
            left = (width - crop) // 2
            frames = frames[..., left : left + crop].transpose(0, 1)
            rows.append(network.features(torch.stack([frames[:, s : s + 16] for s in starts])).numpy())
    return np.stack(rows)


def main() -> None:
    """Render, extract, regress, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="keep the features here (.npy)")
    parser.add_argument("--load", help="take the features from here instead")
    args = parser.parse_args()
    look = Look(seed=args.seed)
    labels = [perform(look, i)[1] for i in range(args.videos)]
    scores = np.array([label.score for label in labels])
    begun = time.perf_counter()
    if args.load:
        x = np.load(args.load)
    else:
        x = features(look, args.videos, args.segments, args.crop)
        print(f"rendered and extracted in {time.perf_counter() - begun:.0f} s")
    if args.save:
        np.save(args.save, x)
    print(f"scores: {scores.min():.1f} .. {scores.max():.1f}, mean {scores.mean():.2f}, sd {scores.std():.2f}")
    for name, rows in (("mean of segments", x.mean(1)), ("segments side by side", x.reshape(len(x), -1))):
        for target in ("score", "entry_angle", "splash", "form_error", "position_error"):
            wanted = scores if target == "score" else np.array([getattr(v.measured, target) for v in labels])
            found = []
            for repeat in range(5):
                folds = KFold(8, shuffle=True, random_state=repeat)
                model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 6, 13)))
                found.append(spearmanr(cross_val_predict(model, rows, wanted, cv=folds), wanted).statistic)
            print(f"{name:22s} {target:15s} Spearman {np.mean(found):+.3f} ± {np.std(found):.3f}")
    alone = spearmanr([label.difficulty for label in labels], scores).statistic
    print(f"difficulty alone       score           Spearman {alone:+.3f}")


if __name__ == "__main__":
    main()
