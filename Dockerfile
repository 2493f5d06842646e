# The environment that CI tests, as an image.
#   docker build --build-arg DEVICE=cuda --tag world-modality:cuda .
#   docker build --build-arg DEVICE=cpu --build-arg TORCH_INDEX=... --tag world-modality:cpu .
# DEVICE=cuda: PyTorch's wheels bring CUDA; the host brings NVIDIA's driver and container toolkit.
# DEVICE=cpu: the same versions from the index of CPU wheels that PyTorch's installation page names, several GB smaller.
ARG DEVICE=cuda
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# FFmpeg for torchcodec; EGL (Mesa, or NVIDIA's through glvnd) and OSMesa for MuJoCo.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg libegl1 libgl1 libgl1-mesa-dri libgles2 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS install-cuda

FROM base AS install-cpu
ARG TORCH_INDEX
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX}

# hadolint ignore=DL3006
FROM install-${DEVICE} AS install
# libero's dependencies are compiled. It needs an older MuJoCo than Meta-World's records are of, and so an image of its own:
# --build-arg EXTRAS=libero,embedded,smolvla,qwen
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git libegl1-mesa-dev libgl1-mesa-dev make \
    && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=metaworld,embedded,report,smolvla,qwen,diffusion,multi_task_dit,pi,xvla,coc
WORKDIR /opt/world-modality
COPY . .
# What CI runs, with the tested versions.
RUN PIP_NO_CACHE_DIR=1 make env VENV=/opt/venv PYTHON=/usr/local/bin/python3 EXTRAS="${EXTRAS}"

FROM base AS final
# So that the container toolkit mounts what rendering and video need, and EGL finds NVIDIA's driver.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility,video
RUN mkdir -p /usr/share/glvnd/egl_vendor.d \
    && echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' \
        >/usr/share/glvnd/egl_vendor.d/10_nvidia.json \
    && useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /home/user/outputs /home/user/.cache /home/user/.cache/huggingface
COPY --from=install /opt/venv /opt/venv
COPY --from=install /opt/world-modality /opt/world-modality
ENV PATH=/opt/venv/bin:${PATH} \
    MUJOCO_GL=egl \
    HF_HOME=/home/user/.cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/user
VOLUME ["/home/user/.cache/huggingface"]
CMD ["wm-doctor"]
