"""Serve a converted model as the OpenAI API does, and show a page that denoises: `python -m dlm.serve run=ID`.

Requests of all clients are decoded side by side; each is answered as the engine alone would (docs/serving.md).
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dlm.config.build import requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.finished import found
from dlm.config.kinds import require_options
from dlm.config.settings import Limits, Serve
from dlm.model.packed_linears import PackedLinears


def require_server() -> None:
    """Raises `ValueError` if the packages of the extra `serve` are not installed."""
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)]:
        raise ValueError(f"serving needs {', '.join(missing)}: pip install 'dlm[serve]'")


@hydra_command("serve")
def main(cfg: DictConfig) -> None:
    require_options(cfg, "serve", Serve)
    require_server()
    import uvicorn

    from dlm.serving.app import create_app
    from dlm.serving.guards import require_key
    from dlm.serving.modes import modes, require_template
    from dlm.serving.service import Service

    require_key(cfg.host, cfg.key)
    require_template(cfg.template)
    opened = found(cfg.run, cfg.runs_dir, cfg.device)
    speakers = modes(opened, requested_decoding(cfg, OmegaConf.create(opened.decoding)), cfg.parent)
    name = cfg.name or opened.name
    with ExitStack() as linears:
        for model in {id(s.denoiser.model): s.denoiser.model for s in speakers.values()}.values():
            linears.enter_context(PackedLinears(model))
        service = Service(speakers, name, Limits(**cfg.limits), cfg.template)
        Console().print(f"{', '.join(service.models)} at http://{cfg.host}:{cfg.port}", soft_wrap=True, highlight=False)
        app = create_app(service, cfg.key, cfg.host)
        uvicorn.run(app, host=cfg.host, port=cfg.port, log_level="warning", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
