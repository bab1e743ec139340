#!/usr/bin/env bash
# The recorded runs on shapes100: the classroom recipe, three seeds, teacher and students each with its own.
# Finished runs are skipped and cut ones resumed; about 8 minutes a seed on one core. Then `record.py` keeps what figures need.
# Usage, from the repository: data/runs/make.sh [FOLDER]
set -euo pipefail
folder=${1:-runs/recorded}
data="--data shapes100 --train-size 4000 --test-size 2000"
for seed in 0 1 2; do
    out=$folder/shapes100/seed$seed
    pckd-nb train $data --model resnet20 --seed $seed --out $out/teacher --resume
    pckd-nb distill $data --student resnet8 --seed $seed --method supervised --out $out/supervised --resume
    for method in kd pckd; do
        pckd-nb distill $data --student resnet8 --seed $seed --method $method --teacher $out/teacher --out $out/$method --resume
    done
done
python data/runs/record.py "$folder" data/runs
