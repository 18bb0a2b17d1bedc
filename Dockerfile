# hkmap on the CPU. Your folder is /data; what is written there is yours.
#
#     docker build --tag hkmap .
#     docker run --rm --interactive --user "$(id -u):$(id -g)" --volume "$PWD:/data" hkmap info train.h5
FROM python:3.13-slim-bookworm

WORKDIR /src
COPY constraints.txt ./
# PyTorch first, alone: the build without CUDA, which would bring gigabytes
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt torch
COPY LICENSE README.md pyproject.toml ./
COPY hkmap hkmap
# a slim system has no libGL, so OpenCV is the build without windows
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && pip uninstall --yes opencv-python \
    && pip install --no-cache-dir --constraint constraints.txt opencv-python-headless \
    && python -c "import cv2, hkmap.training.fitting" \
    && useradd --no-create-home --uid 1000 hkmap

# --user may name somebody whom the image does not know: caches go to /tmp, and PyTorch asks for a name
ENV HOME=/tmp USER=hkmap
USER 1000
WORKDIR /data
ENTRYPOINT ["hkmap"]
CMD ["--help"]
