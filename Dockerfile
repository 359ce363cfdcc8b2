# JupyterLab with everything that the notebooks need.
#
#     docker build --tag kpc-ldm .                              # on CPUs
#     docker build --tag kpc-ldm --build-arg DEVICE=cuda .      # on GPUs; the host needs the NVIDIA container toolkit
#     docker run --rm -p 8888:8888 --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" kpc-ldm
#
# The last line mounts this checkout, so that results and edited notebooks stay on the host and belong to you. Add
# -v /path/to/tiles:/data:ro for tiles that lie elsewhere (data = "/data"), and --gpus all on GPUs. In a terminal of it,
# `python -m pfiles demo --out runs/demo` does what `make demo` does, without a second environment.
ARG DEVICE=cpu

FROM python:3.11-slim AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user \
    && install --directory --owner user /opt/venv /work
USER user
ENV PATH=/opt/venv/bin:$PATH USER=user
RUN python -m venv /opt/venv
WORKDIR /work
COPY --chown=user requirements.txt constraints.txt ./

# PyTorch without CUDA, 4 GB less; its pinned version from PyTorch's own index
FROM base AS cpu
RUN torch=$(grep "^torch==" constraints.txt) && vision=$(grep "^torchvision==" constraints.txt) \
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$torch" "$vision" \
    && grep -v "^nvidia-\|^cuda-\|^triton==\|^torch==\|^torchvision==" constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir --requirement requirements.txt --constraint /tmp/constraints.txt

# as published on PyPI, with the CUDA libraries
FROM base AS cuda
RUN pip install --no-cache-dir --requirement requirements.txt --constraint constraints.txt

FROM ${DEVICE}
COPY --chown=user . .
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "start_here.ipynb"]
