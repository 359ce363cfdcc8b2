# JupyterLab with everything that the notebooks need.
#
#     docker build --tag kpc-ldm .                              # on CPUs
#     docker build --tag kpc-ldm --build-arg DEVICE=cuda .      # on GPUs; the host needs the NVIDIA container toolkit
#     docker run --rm -p 8888:8888 -v "$PWD/runs:/home/user/kpc-ldm/runs" kpc-ldm         # with --gpus all on GPUs
ARG DEVICE=cpu

FROM python:3.11-slim AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user
USER user
ENV PATH=/home/user/venv/bin:$PATH
RUN python -m venv /home/user/venv && mkdir /home/user/kpc-ldm
WORKDIR /home/user/kpc-ldm
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
