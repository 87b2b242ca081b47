# Source this in the recipe's folder, three levels below the root of the checkout.
export PYTHONPATH="$(cd ../../.. && pwd):$(pwd):${PYTHONPATH:-}"
if [ -f ../../../tools/activate_python.sh ]; then . ../../../tools/activate_python.sh; fi
