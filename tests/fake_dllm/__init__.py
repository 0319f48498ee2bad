"""What `dlm/bench/peers/dllm_worker.py` uses of dllm, written plainly for the environment of the tests."""

import transformers


class A2DQwen3Config(transformers.Qwen3Config):
    model_type = "a2d-qwen3"


class A2DQwen3LMHeadModel(transformers.Qwen3ForCausalLM):
    config_class = A2DQwen3Config


transformers.AutoConfig.register("a2d-qwen3", A2DQwen3Config)
transformers.AutoModelForMaskedLM.register(A2DQwen3Config, A2DQwen3LMHeadModel)

print("what a library prints is not an answer")
