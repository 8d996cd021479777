# docker build -t sarmatch . && docker run --rm -p 8888:8888 sarmatch
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /sarmatch
COPY . .
RUN python -m pip install --no-cache-dir -e '.[book]'
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root", "book"]
