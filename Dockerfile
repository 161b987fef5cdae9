# diff.py in a container, because the files that it reads may be hostile. See docs/security.md.
#
#   docker build -t bert-diff .
#   docker run --rm --network none --read-only --tmpfs /tmp:size=4g --cap-drop ALL \
#       --security-opt no-new-privileges --memory 8g --pids-limit 256 \
#       -v "$PWD/binaries:/in:ro" -v "$PWD/report:/out" \
#       bert-diff /in/old /in/new --outputDir /tmp/output --html /out/diff.html
#
# /out must be writable for user 10001: mkdir report && sudo chown 10001 report

FROM python:3.11-slim

WORKDIR /app
COPY requirements.txt .
# Install only what diff.py imports: without torch and TensorFlow the image is a quarter of the size.
RUN grep -vE "^(torch|tensor|tokenizers|scikit-learn|matplotlib|pyarrow|numba)" requirements.txt \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin reader
COPY *.py ./
COPY binary binary
COPY features features
COPY encoder encoder
COPY files files
COPY jobs jobs
COPY matching matching
COPY terminal terminal
COPY model model

USER 10001
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python", "/app/diff.py"]
