#!/usr/bin/env bash
# Make the recorded runs, from which all figures and tables are drawn: first teachers, then grids of students.
# Finished runs are skipped, and interrupted ones are resumed, so you can stop this script at any time and start it again.
# On two CPU cores it takes about two nights.
#
#   source .venv/bin/activate
#   data/runs/make.sh [FOLDER]       The default folder is runs/recorded.
#   python data/runs/record.py FOLDER data/runs
#   python data/runs/record.py FOLDER_other_teachers data/other_teachers --tables-only
#   python data/runs/record.py FOLDER_fair_comparison data/fair_comparison --tables-only --teachers data/runs/teachers
#   python data/runs/record.py FOLDER_paper_schedule data/paper_schedule --weights
#
# Environment variables:
#   JOBS=2                           number of runs trained at the same time, with one thread each
#   STUDIES="shapes100 digits …"     make only these studies
#   CIFAR10=PATH                     images of CIFAR-10, in PATH/{train,test}/CLASS; without it, this study is left out
set -euo pipefail
folder=${1:-runs/recorded}
jobs=${JOBS:-2}
studies=${STUDIES:-shapes100 other_teachers fair_comparison digits fashion_mnist cifar10 paper_schedule}
export OMP_NUM_THREADS=1

teacher() { pckd-nb train --seed "${teacher_seed:-0}" --out "$folder/teachers/$1" --resume "${@:2}"; }
grid() { pckd-nb "$1" --out "$folder/$2" --teacher "$folder/teachers/$2" --student "${student:-resnet8}" --jobs "$jobs" "${@:3}"; }

for study in $studies; do
    case $study in
    shapes100)
        data=(--data shapes100 --train-size 4000 --test-size 2000)
        teacher shapes100 "${data[@]}" --model resnet20 --epochs 30
        grid ablate shapes100 "${data[@]}" --seeds 0-2
        grid sweep shapes100 "${data[@]}" --seeds 0-2 --factor beta_cc --factor beta_fa --factor beta_ca --factor epsilon_240
        # tuned: the best β_fa and the best β_ca of that sweep, on seed 0. It is compared with KD, also with one view,
        # in longer trainings, with other weights of KD, and without some of its terms.
        tuned=beta_fa=5-beta_ca=100
        grid compare shapes100 "${data[@]}" --seeds 0-2 --methods "kd,pckd,pckd-$tuned,pckd-views=1-$tuned"
        grid compare shapes100 "${data[@]}" --seeds 0-4 --methods "kd,kd-beta_kd=3,pckd-views=1-$tuned"
        grid compare shapes100 "${data[@]}" --seeds 0-2 --methods "kd-epochs=20,pckd-views=1-$tuned-epochs=20" --reference kd-epochs=20
        grid compare shapes100 "${data[@]}" --seeds 0-2 --methods "kd-epochs=40,pckd-views=1-$tuned-epochs=40" --reference kd-epochs=40
        grid compare shapes100 "${data[@]}" --seeds 0-2 --methods \
            "kd,kd-beta_kd=0.3,kd-beta_kd=3,kd-beta_kd=10,pckd-views=1-beta_fa=5,pckd-views=1-beta_ca=100,pckd-views=1-beta_cc=0-$tuned,pckd-strategy=uniform-views=1-$tuned"
        for method in supervised kd pckd; do
            grid sweep shapes100 "${data[@]}" --seeds 0-2 --method $method --factor epochs=5,10,20,40 --reference $method
        done
        grid ablate shapes100 "${data[@]}" --seeds 0-4
        ;;
    other_teachers) # the same students with other teachers: two with other seeds, and one that was trained on 10,000 images
        data=(--data shapes100 --test-size 2000)
        tuned=views=1-beta_fa=5-beta_ca=100
        main=$folder
        for name in seed1 seed2 images10000; do
            folder=${main}_other_teachers/$name
            case $name in
            images10000) size=10000 seed=0 ;;
            *) size=4000 seed=${name#seed} ;;
            esac
            teacher_seed=$seed teacher shapes100 "${data[@]}" --train-size $size --model resnet20 --epochs 30
            students=("${data[@]}" --train-size 4000 --seeds 0-2)
            grid compare shapes100 "${students[@]}" --methods "kd,pckd-$tuned,pckd"
            if [ $name = images10000 ]; then
                grid compare shapes100 "${students[@]}" --methods "kd-epochs=20,pckd-epochs=20" --reference kd-epochs=20
                grid compare shapes100 "${students[@]}" --methods "kd-epochs=40,pckd-$tuned-epochs=40" --reference kd-epochs=40
            fi
        done
        folder=$main
        ;;
    fair_comparison) # every method with the same number of trials, then the chosen settings; needs the study shapes100
        data=(--data shapes100 --train-size 4000 --test-size 2000)
        preview_on_kd=pckd-beta_fa=0-beta_ca=0-beta_cc=0-views=1
        methods=kd,dkd,dist,crd,reviewkd,$preview_on_kd,kd-views=4,sskd,pckd
        pckd-nb search --out "${folder}_fair_comparison/search" --teacher "$folder/teachers/shapes100" --student resnet8 \
            "${data[@]}" --methods $methods --trials 8 --val 0.25
        pckd-nb compare --out "${folder}_fair_comparison/shapes100" --teacher "$folder/teachers/shapes100" --student resnet8 \
            "${data[@]}" --seeds 0-4 --jobs "$jobs" --chosen "${folder}_fair_comparison/search" \
            --methods supervised,$methods,kd-ce_weight=0.1-beta_kd=0.9
        ;;
    paper_schedule) # 240 epochs on 5,000 photographs, as many per class as CIFAR-100 has
        if [ -z "${CIFAR10:-}" ]; then
            echo "paper_schedule is left out: set CIFAR10=PATH to the folder of its images" >&2
            continue
        fi
        data=(--data "folder:$CIFAR10" --train-size 5000 --recipe cifar100_paper)
        main=$folder folder=${folder}_paper_schedule
        teacher cifar10 "${data[@]}" --model resnet32
        grid compare cifar10 "${data[@]}" --seeds 0 --methods supervised,kd,kd-views=4,pckd,pckd-strategy=uniform
        folder=$main
        ;;
    digits) # only a teacher, to start a class with
        teacher digits --data digits --model resnet20
        ;;
    fashion_mnist)
        data=(--data fashion_mnist --train-size 6000)
        teacher fashion_mnist "${data[@]}" --model resnet20
        grid compare fashion_mnist "${data[@]}" --methods supervised,kd,pckd,pckd-strategy=uniform --seeds 0-2
        ;;
    cifar10)
        if [ -z "${CIFAR10:-}" ]; then
            echo "cifar10 is left out: set CIFAR10=PATH to the folder of its images" >&2
            continue
        fi
        data=(--data "folder:$CIFAR10" --batch-size 64 --flip)
        # 14 epochs with learning rate 0.02 and then 10 more gave a good teacher sooner than one training of 24 epochs.
        teacher cifar10_start "${data[@]}" --model resnet32 --lr 0.02 --epochs 14
        teacher cifar10 "${data[@]}" --model resnet32 --epochs 10 --init "$folder/teachers/cifar10_start"
        grid compare cifar10 "${data[@]}" --train-size 10000 --epochs 30 --methods supervised,kd,pckd,pckd-strategy=uniform --seeds 0-2
        # A pair of unequal width (64 → 1024), so L_CA is left out. This needs pckd_nb[timm].
        student=timm:mobilenetv3_small_050 grid compare cifar10 "${data[@]}" --train-size 10000 --epochs 30 --methods supervised,kd,pckd --seeds 0-2
        ;;
    *)
        echo "there is no study '$study': choose from shapes100, other_teachers, fair_comparison, digits, fashion_mnist, cifar10, paper_schedule" >&2
        exit 2
        ;;
    esac
done
