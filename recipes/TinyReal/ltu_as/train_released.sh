#!/usr/bin/env bash
# Trains, evaluates and packs the released model "tiny": bash train_released.sh CORPORA
#
# CORPORA contains the folders an4, esc10, speechocean762, barista, read_text and librispeech_dev in the layouts of
# README.md. Two processes on two CPU cores take about 25 minutes for the features, 45 for Whisper's transcripts and 160
# for the training. After an interruption, the same command continues.
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

# Stages 2 and 3 were trained with transcripts as Whisper writes them, the rest with plain ones.
written=$data/whisper_written.yaml
sed "/^decoder_text/d" $encoder > $written
choose() { # OUTPUT OPTIONS...: rows of data/train.jsonl
    local output=$data/$1
    shift
    [ -f "$output" ] || audiolm-lite transcripts $data/train.jsonl "$output" "$@"
}
without_childrens_gender() { # FILE: it cannot be heard, not even by a classifier of the encoder's layers
    grep -v '"SpeechOcean762 children", "split": "train", "task": "gender"' $data/$1.jsonl > $data/$1_chosen.jsonl
}
words="word_said word_count word_place spelling"
choose 2_transcript.jsonl --encoder $written --share 0.25 --tasks asr no_speech
choose 2_speech.jsonl --blank --share 0.3 --seed 1 --tasks asr no_speech
choose 2_sounds.jsonl --blank --tasks sound_class
choose 2_people.jsonl --blank --share 0.45 --seed 1 --tasks gender age
choose 2_orders.jsonl --blank --share 0.4 --seed 1 --tasks order
choose 2_words.jsonl --blank --share 0.15 --seed 1 --tasks $words
choose 3_transcript.jsonl --encoder $written --share 0.04 --tasks asr no_speech
choose 3_speech_transcript.jsonl --encoder $written --share 0.35 --seed 5 --tasks asr
choose 3_labels_transcript.jsonl --encoder $written --share 0.15 --seed 6 \
    --tasks gender age order sound_class caption $words
choose 3_speech.jsonl --blank --share 0.12 --seed 7 --tasks asr no_speech
choose 3_people.jsonl --blank --share 0.35 --seed 7 --tasks gender age
choose 3_sounds.jsonl --blank --tasks sound_class
choose 3_captions.jsonl --blank --share 0.15 --seed 7 --tasks caption
choose 3_orders.jsonl --blank --share 0.15 --seed 7 --tasks order
choose 3_words.jsonl --blank --share 0.1 --seed 7 --tasks $words
without_childrens_gender 3_people
without_childrens_gender 3_labels_transcript
choose 4_transcript.jsonl --encoder $encoder --share 0.2 --seed 5 --tasks asr
choose 4_labels_transcript.jsonl --encoder $encoder --share 0.04 --seed 6 --tasks sound_class caption order $words
choose 4_silence_transcript.jsonl --encoder $encoder --share 0.08 --tasks no_speech
choose 4_sounds.jsonl --blank --share 0.3 --tasks sound_class
choose 4_speech.jsonl --blank --share 0.04 --seed 7 --tasks asr no_speech
choose 4_orders.jsonl --blank --share 0.03 --seed 7 --tasks order
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
$two train.py hparams/stage_3.yaml --batch_tokens 1024 --warmup_steps 20 --manifests.train \
    "$(of_stage 3 speech speech_transcript transcript labels_transcript_chosen sounds captions people_chosen orders words)"
# Once more with plain transcripts, which a small LLM copies better.
$two train.py hparams/stage_3.yaml --stage 4 --previous_stage results/stage_3 --batch_tokens 1024 --warmup_steps 10 \
    --learning_rates '{"adapter.*": 1.0e-4, "llm.*lora_*": 4.0e-4}' \
    --manifests.train "$(of_stage 4 transcript labels_transcript silence_transcript sounds speech orders)"

python evaluate.py hparams/evaluate.yaml --model_folder results/stage_4 --manifests "[$data/test.jsonl, $data/librispeech_dev.jsonl]"
python evaluate.py hparams/evaluate_transcript.yaml --model_folder results/stage_4 --controls "[normal, transcript]" \
    --manifests "[$data/test_transcript.jsonl, $data/librispeech_dev_transcript.jsonl]"
audiolm-lite release results/stage_4 ../../../audiolm_lite/released/tiny --notes model_card.md \
    --metrics results/evaluation/metrics.json
