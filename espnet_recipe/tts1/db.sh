# Folders of the corpora. In an ESPnet checkout its own egs2/TEMPLATE/asr1/db.sh is used instead.
LIBRITTS=${LIBRITTS:-}   # the folder with train-clean-100, dev-clean and so on in it (openslr.org/60)
