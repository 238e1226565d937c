#!/usr/bin/env bash
# Trains, evaluates and packs the released model "tiny": bash train_released.sh CORPORA
#
# CORPORA contains the folders an4, esc10, speechocean762, barista, read_text and librispeech_dev in the layouts of
# README.md. Two processes on two CPU cores take about 25 minutes for the features and 90 for the training. After an
# interruption, the same command continues.
set -euo pipefail
cd "$(dirname "$0")"
corpora=$1
data=data
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
two="torchrun --standalone --nproc_per_node 2"
encoder=../../../hparams/encoders/whisper_tiny_en.yaml

$two prepare.py hparams/prepare.yaml --output_folder $data \
    --an4_folder "$corpora/an4" --esc50_folder "$corpora/esc10" --barista_folder "$corpora/barista" \
    --speechocean762_folder "$corpora/speechocean762" --speechocean762_test_share 0.1 \
    --read_text_folder "$corpora/read_text" --librispeech_folders.valid "[$corpora/librispeech_dev]" \
    --single_share 0.08 --perturbed_share 0.1 --label_copies 8 --mixtures 400 --silent_clips 200 --max_rejects 0.02

grep '"dataset": "LibriSpeech"' $data/valid.jsonl > $data/librispeech_dev.jsonl

choose() { # OUTPUT OPTIONS...: rows of data/train.jsonl
    local output=$data/$1
    shift
    [ -f "$output" ] || audiolm-lite transcripts $data/train.jsonl "$output" "$@"
}
words="word_said word_count word_place spelling"
choose 2_transcript.jsonl --encoder $encoder --share 0.25 --tasks asr no_speech
choose 2_speech.jsonl --blank --share 0.3 --seed 1 --tasks asr no_speech
choose 2_sounds.jsonl --blank --tasks sound_class
choose 2_people.jsonl --blank --share 0.45 --seed 1 --tasks gender age
choose 2_orders.jsonl --blank --share 0.4 --seed 1 --tasks order
choose 2_words.jsonl --blank --share 0.15 --seed 1 --tasks $words
choose 3_transcript.jsonl --encoder $encoder --share 0.04 --tasks asr no_speech
choose 3_speech.jsonl --blank --share 0.04 --seed 2 --tasks asr no_speech
choose 3_sounds.jsonl --blank --tasks sound_class
choose 3_captions.jsonl --blank --share 0.15 --seed 2 --tasks caption
choose 3_people.jsonl --blank --share 0.3 --seed 2 --tasks gender age
choose 3_orders.jsonl --blank --share 0.15 --seed 2 --tasks order
choose 3_words.jsonl --blank --share 0.06 --seed 2 --tasks $words
for split in test librispeech_dev; do
    output=$data/${split}_transcript.jsonl
    [ -f "$output" ] || audiolm-lite transcripts $data/$split.jsonl "$output" --encoder $encoder
done

of_stage() { # NUMBER PART...: the manifests of a stage
    local number=$1 files=""
    shift
    for part in "$@"; do files="$files$data/${number}_$part.jsonl, "; done
    echo "[${files%, }]"
}
$two train.py hparams/stage_1.yaml --batch_tokens 1024
$two train.py hparams/stage_2.yaml --batch_tokens 1024 --warmup_steps 40 --valid_answers.items 150 \
    --manifests.train "$(of_stage 2 speech transcript sounds people orders words)"
$two train.py hparams/stage_3.yaml --batch_tokens 1024 --warmup_steps 10 \
    --manifests.train "$(of_stage 3 speech transcript sounds captions people orders words)"

python evaluate.py hparams/evaluate.yaml --manifests "[$data/test.jsonl, $data/librispeech_dev.jsonl]"
python evaluate.py hparams/evaluate_transcript.yaml --controls "[normal, transcript]" \
    --manifests "[$data/test_transcript.jsonl, $data/librispeech_dev_transcript.jsonl]"
audiolm-lite release results/stage_3 ../../../audiolm_lite/released/tiny --notes model_card.md \
    --metrics results/evaluation/metrics.json
