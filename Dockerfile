# The server of python -m dlm.serve. CPU: docker build -t dlm . ; GPU: docker build -t dlm-gpu --build-arg DEVICE=gpu .
# docs/serving.md says how to run it.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu: torch without CUDA, a tenth of the size. gpu: torch as PyPI has it, with its CUDA libraries.
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1

WORKDIR /opt/dlm
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY conf conf
COPY sweeps sweeps
COPY reports/ablation reports/ablation
COPY analysis analysis
COPY dlm dlm
RUN case "$DEVICE" in \
      cpu) pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch ;; \
      gpu) pip install --constraint constraints.txt torch ;; \
      *) echo "DEVICE $DEVICE must be cpu or gpu" >&2; exit 1 ;; \
    esac \
 && pip install --constraint constraints.txt '.[serve]'

RUN useradd --create-home dlm && mkdir /models && chown dlm /models
USER dlm
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"
# A container is reached from outside it, so the server asks for a key: -e DLM_KEY=...
ENTRYPOINT ["python", "-m", "dlm.serve", "host=0.0.0.0", "runs_dir=/models"]
