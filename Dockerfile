# The images of the operator and the runtime. Targets: operator, runtime (CPU), runtime-cuda (the same runtime, with the
# libraries of CUDA beside it).
#
#   docker build --target runtime --tag torchmodel-runtime .
#
# builds everything from source (an old buildah wants --build-arg BINARIES=builder said as well). With BINARIES=prebuilt the
# images are made of the files that `make image-files` has put into target/image/ (tests/cluster/images.sh does so, on a base
# image that it makes itself).
ARG BASE_IMAGE=debian:bookworm-slim
ARG BUILDER_IMAGE=rust:1.95-bookworm
ARG BINARIES=builder

FROM ${BUILDER_IMAGE} AS builder
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-pip \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make image-files

FROM builder AS builder-operator
FROM builder AS builder-runtime
FROM builder AS builder-cuda
RUN make image-files-cuda

FROM scratch AS prebuilt-operator
COPY target/image/bin/torchmodel-operator /src/target/image/bin/

FROM scratch AS prebuilt-runtime
COPY target/image/lib/ /src/target/image/lib/
COPY target/image/bin/torchmodel-runtime /src/target/image/bin/

FROM scratch AS prebuilt-cuda
COPY target/image/lib-cuda/ /src/target/image/lib-cuda/

FROM ${BINARIES}-operator AS operator-files
FROM ${BINARIES}-runtime AS runtime-files
FROM ${BINARIES}-cuda AS cuda-files

# A non-root user by number, so that Kubernetes can see that it is none (runAsNonRoot). Nothing is written to the root
# file system at run time.
FROM ${BASE_IMAGE} AS base
RUN test -s /etc/ssl/certs/ca-certificates.crt \
 || { apt-get update \
   && apt-get install --yes --no-install-recommends ca-certificates \
   && rm -rf /var/lib/apt/lists/*; }
LABEL org.opencontainers.image.vendor="torchmodel"
USER 65532:65532
WORKDIR /

FROM base AS operator
COPY --from=operator-files /src/target/image/bin/torchmodel-operator /opt/torchmodel/bin/torchmodel-operator
LABEL org.opencontainers.image.title="torchmodel-operator" \
      org.opencontainers.image.description="Kubernetes operator that serves TorchScript models described by TorchModel resources"
ENTRYPOINT ["/opt/torchmodel/bin/torchmodel-operator"]

# libtorch changes far less often than the binary: it is a layer of its own, below.
FROM base AS runtime
COPY --from=runtime-files /src/target/image/lib/ /opt/torchmodel/lib/
COPY --from=runtime-files /src/target/image/bin/torchmodel-runtime /opt/torchmodel/bin/torchmodel-runtime
LABEL org.opencontainers.image.title="torchmodel-runtime" \
      org.opencontainers.image.description="Inference runtime for TorchScript models, for CPUs"
# How long OpenMP's threads look for work before they sleep; the program would otherwise start itself again to set it.
ENV GOMP_SPINCOUNT=10000
EXPOSE 8080 8081 8082
ENTRYPOINT ["/opt/torchmodel/bin/torchmodel-runtime"]

FROM base AS runtime-cuda
COPY --from=cuda-files /src/target/image/lib-cuda/ /opt/torchmodel/lib/
COPY --from=runtime-files /src/target/image/lib/ /opt/torchmodel/lib/
COPY --from=runtime-files /src/target/image/bin/torchmodel-runtime /opt/torchmodel/bin/torchmodel-runtime
# What asks the container toolkit for the driver's libraries. Where there is no toolkit (GKE), they are in /usr/local/nvidia.
# CUDA's compiler (libnvrtc) loads its builtins by name alone, so its folder has to be on the path.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/torchmodel/lib:/usr/local/nvidia/lib64
LABEL org.opencontainers.image.title="torchmodel-runtime" \
      org.opencontainers.image.description="Inference runtime for TorchScript models, for NVIDIA GPUs and CPUs"
# How long OpenMP's threads look for work before they sleep; the program would otherwise start itself again to set it.
ENV GOMP_SPINCOUNT=10000
EXPOSE 8080 8081 8082
ENTRYPOINT ["/opt/torchmodel/bin/torchmodel-runtime"]
