"""What one writes today: Ray Tune, OptunaSearch, the HF Trainer, PEFT. `cohort.py` compares with it.

    python benchmarks/stock.py 16 FOLDER 0            # 16 trials under seed 0, to their ends
    python benchmarks/stock.py 16 FOLDER 0 searching  # a search, with ASHA

Prints (time, validation loss) of every report as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from trials import BATCH_SIZES, DATA, EPOCHS, LEARNING_RATES, MODEL, SEARCHED


def fine_tune(config: dict[str, Any]) -> None:
    import datasets
    import peft
    import torch
    import transformers
    from ray import tune

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    lora = peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=config["dropout"], target_modules="all-linear", task_type="CAUSAL_LM"
    )

    def tokenised(name: str) -> Any:
        rows = []
        for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
            *before, last = json.loads(line)["messages"]
            prompt = "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in before) + "\nAssistant:"
            read = tokenizer(f"{prompt} {last['content']}", return_offsets_mapping=True)
            known = sum(end <= len(prompt) for _, end in read["offset_mapping"])
            ids = [*read["input_ids"], tokenizer.eos_token_id]
            rows.append({"input_ids": ids, "labels": [-100] * known + ids[known:], "length": len(ids)})
        return datasets.Dataset.from_list(rows)

    class Reporting(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            tune.report({"eval_loss": metrics["eval_loss"]})

    train, validation = tokenised("train"), tokenised("validation")
    steps = -(-len(train) // config["batch_size"])
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=config["batch_size"],
        per_device_eval_batch_size=len(validation),  # in one batch, its mean is that over all tokens
        num_train_epochs=config["epochs"],
        learning_rate=config["learning_rate"],
        weight_decay=config["weight_decay"],
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=-(-steps // 2),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(
        peft.get_peft_model(model, lora),
        arguments,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[Reporting()],
    ).train()


def main() -> None:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    count, folder, seed, *searching = sys.argv[1:]
    space: dict[str, Any] = {
        "batch_size": tune.choice(list(BATCH_SIZES)),
        "learning_rate": tune.loguniform(*LEARNING_RATES),
        "epochs": 1,
        "dropout": 0.0,
        "weight_decay": 0.01,
    }
    if searching:
        space |= {
            "learning_rate": tune.loguniform(*SEARCHED["learning_rate"]),
            "epochs": tune.randint(1, EPOCHS + 1),
            "dropout": tune.uniform(*SEARCHED["dropout"]),
            "weight_decay": tune.loguniform(*SEARCHED["weight_decay"]),
        }

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(fine_tune, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric="eval_loss", mode="min", seed=int(seed)),
            scheduler=ASHAScheduler(metric="eval_loss", mode="min", max_t=2 * EPOCHS) if searching else None,
            num_samples=int(count),
            max_concurrent_trials=os.cpu_count(),
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    assert len(results) == int(count)
    seen = [result.metrics_dataframe[["timestamp", "eval_loss"]].to_numpy().tolist() for result in results]
    print(json.dumps([pair for pairs in seen for pair in pairs]))


if __name__ == "__main__":
    main()
