#!/usr/bin/env bash
# Runs what the tables of docs/results.md are made of and writes them there: `make results [RUNS=folder]`.
# Hours on two cores. A run that is done is left as it is, one that was interrupted continues. Other recordings are
# measured where they are named: KINECT (folder of depth images), LEROBOT (a bimanual LeRobot data set with the cameras
# left, right and top), CAMVID (folder of train.npz, val.npz and test.npz).
set -euo pipefail
runs=${1:?folder for the runs}
page=docs/results.md
mkdir -p "$runs"

if [ -n "${KINECT:-}" ]; then
    codes() { python benchmarks/depth_codes.py run "$KINECT" "$runs/codes" "$@"; }
    for variant in split split_flat patches_alone; do codes --variant $variant --fold 0 --seed 0; done
    for variant in long_split_flat long_patches_alone long_split; do
        for fold in 0 1 2 3 4; do codes --variant $variant --fold $fold --seed 0; done
        for seed in 1 2; do codes --variant $variant --fold 0 --seed $seed; done
    done
    for variant in gap flat; do codes --variant $variant --fold 0 --seed 0; done
    python benchmarks/depth_codes.py table "$runs/codes" --write $page
fi

(cd demo/probes && dvc repro)
probes() { python benchmarks/depth_probes.py run "$runs/probes" "$@"; }
for seed in 0 1 2; do
    for variant in pipeline long supervised patches_alone; do probes --variant $variant --seed $seed; done
done
for variant in long_flat without_inverse_dynamics without_summary plain plain_reconstruction_alone; do
    probes --variant $variant --seed 0
done
python benchmarks/depth_probes.py table "$runs/probes" --write $page

fusion() { python benchmarks/fusion_designs.py run "$@"; }
# The demo with more episodes: 400 to learn to act from, 50 to choose the epoch by, 50 to judge.
plate="$runs/plate"
if [ ! -e "$plate/views.hdf5" ]; then
    recording="$plate/recording"
    python stages/simulate.py --frames "$recording/frames.parquet" --states "$recording/states.hdf5" \
        --set simulate.episodes=500
    python stages/render.py --states "$recording/states.hdf5" --out "$recording"
    python stages/validate.py "$recording" "$plate/index" --set data.split.val=0.1 --set data.split.test=0.1
    python stages/pack_views.py "$recording" "$plate/views.hdf5" --index "$plate/index"
fi
acting() { fusion "$plate/views.hdf5" "$runs/policies" --scenes 50 "$@"; }
for seed in 0 1 2; do
    acting --design stacked --seed $seed --set fusion.epochs=6
    acting --design joints_only --seed $seed --set fusion.epochs=12
    acting --design joints_only --seed $seed --set fusion.epochs=12 --label told_the_positions \
        --truth "$plate/recording/frames.parquet" object_position goal_position
done
python benchmarks/fusion_designs.py table "$runs/policies" --name demo --write $page
# What limits the policy: episodes, augmentation, resolution.
fewer() { fusion "$plate/views.hdf5" "$runs/limits" --design stacked --seed 0 --scenes 50 --set fusion.epochs=12 "$@"; }
for count in 50 100 200; do fewer --episodes $count --label of_$count; done
fewer --episodes 200 --label without_augmentation --set fusion.shift=0 --set fusion.jitter=0
small="$plate/views56.hdf5"
[ -e "$small" ] || python stages/pack_views.py "$plate/recording" "$small" --index "$plate/index" --set views.image_size=56
fusion "$small" "$runs/limits56" --design stacked --seed 0 --scenes 50 --set fusion.epochs=12 --set fusion.shift=3 \
    --episodes 200 --label of_56_pixels
python benchmarks/fusion_designs.py table "$runs/limits" --name limits

if [ -n "${LEROBOT:-}" ]; then
    [ -e "$runs/recording" ] || python stages/import_lerobot.py "$LEROBOT" "$runs/recording"
    python stages/validate.py "$runs/recording" "$runs/index"
    python stages/pack_views.py "$runs/recording" "$runs/views.hdf5" --index "$runs/index" \
        --set 'views.cameras=[left,right,top]'
    for seed in 0 1 2; do
        for design in stacked joints_only separate; do
            fusion "$runs/views.hdf5" "$runs/real" --design $design --seed $seed --set fusion.stride=3 \
                --set fusion.epochs=14 --set fusion.lr=3e-4
        done
    done
    fusion "$runs/views.hdf5" "$runs/real" --design stacked --seed 0 --label stacked_without_views \
        --set fusion.stride=3 --set fusion.epochs=14 --set fusion.lr=3e-4 --set fusion.view_dropout=0.8
    python benchmarks/fusion_designs.py table "$runs/real" --name "real recording" --write $page
fi

segmentation() { python benchmarks/segmentation.py run "$@"; }
dvc repro validate_images clip_grids
pictures=data/demo/rgb/global
pixels="$runs/pixels.hdf5" untrained="$runs/untrained"
[ -e "$pixels" ] || python benchmarks/pixel_grids.py data/grids/efficientnet/global $pictures "$pixels"
[ -e "$untrained" ] || python stages/clip_grids.py $pictures "$untrained" --name efficientnet \
    --index data/index/rgb/global.parquet --set grids.pretrained=random \
    --set grids.sha256=null
demo() { segmentation "$runs/masks" --recording data/demo --index data/index --labelled 1 --seeds 0 1 2 "$@"; }
demo --methods supervised bcp
bcp="segmentation.method=bcp grid --feature"
demo --variant bcp_grid $bcp data/grids/efficientnet/global
demo --variant bcp_untrained_grid $bcp "$untrained"
demo --variant bcp_pixels $bcp "$pixels"
demo --methods unimatch semiseg ss_net
python benchmarks/segmentation.py table "$runs/masks" --name "segmentation of the demo" --write $page

python benchmarks/phantom.py "$runs/hearts"
slices="--set segmentation.image_size=[64,64] --set segmentation.crop=null --set segmentation.epochs=30"
patients="--arrays $runs/hearts --labelled 3 $slices"
segmentation "$runs/patients" $patients --seeds 0 1 2 --methods supervised bcp
segmentation "$runs/patients" $patients --seeds 0 --methods unimatch semiseg ss_net
segmentation "$runs/patients" $patients --seeds 0 1 2 \
    --variant bcp_largest segmentation.method=bcp segmentation.bcp.largest_part=true
python benchmarks/segmentation.py table "$runs/patients" --name "segmentation of hearts" --write $page
hearts="--arrays $runs/hearts --labelled 3 --seeds 0 --methods supervised bcp --set segmentation.steps_per_epoch=100"
segmentation "$runs/hearts_whole" $hearts --set segmentation.crop=null
segmentation "$runs/hearts_parts" $hearts
for how in whole parts; do python benchmarks/segmentation.py table "$runs/hearts_$how"; done

if [ -n "${CAMVID:-}" ]; then
    segmentation "$runs/camvid" --arrays "$CAMVID" --labelled 0.05 0.2 --seeds 0 \
        --set segmentation.steps_per_epoch=200 --set evaluate_segmentation.windows=false \
        --methods supervised bcp semiseg unimatch ss_net \
        --set segmentation.void=11 --set segmentation.has_background=false --set segmentation.hue=0.05 \
        --set 'segmentation.image_size=[120,160]' --set 'segmentation.crop=[64,96]'
    python benchmarks/segmentation.py table "$runs/camvid" --name "segmentation of road scenes" --write $page
fi
